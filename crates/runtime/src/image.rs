//! Images: references, registries, layers, the local store.
