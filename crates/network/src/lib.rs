//! Pod network, service proxy: desired links, routes and nftables, and applying them.
