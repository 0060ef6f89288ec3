//! Our own runtime: zygote, namespaces, cgroups, seccomp, overlayfs.
