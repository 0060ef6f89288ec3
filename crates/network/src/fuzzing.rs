//! What the fuzz targets reach of the readers of netlink's answers; compiled by `make fuzz` alone.

/// A datagram of the kernel's, read as nftables' answer and as that of links and routes.
pub fn netlink(datagram: &[u8]) {
    let answers = crate::nft::encode::answers(datagram);
    assert!(answers.len() <= datagram.len());
    crate::nft::read::chains_in(datagram);
    let mut answers = Vec::new();
    let _ = crate::route_socket::read_answers(datagram, 1, &mut answers);
    assert!(answers.len() <= datagram.len());
}
