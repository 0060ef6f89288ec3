//! The expressions that our rules are made of (linux/netfilter/nf_tables.h), and their attributes.

use super::encode::Attributes;

/// Registers: four of 16 bytes from 1, or of four bytes from 8 on, where 8 is the first quarter of 1.
pub mod register {
    pub const VERDICT: u32 = 0;
    pub const FIRST: u32 = 1;
    /// The second and third four bytes of a concatenated key that begins at `FIRST`.
    pub const SECOND_WORD: u32 = 9;
    pub const THIRD_WORD: u32 = 10;
    /// The second register of 16 bytes.
    pub const SECOND: u32 = 2;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// NF_INET_PRE_ROUTING 0, LOCAL_IN 1, FORWARD 2, LOCAL_OUT 3, POST_ROUTING 4.
    pub number: u32,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    Eq = 0,
    Neq = 1,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Jump(String),
    Goto(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    PortUnreachable,
    TcpReset,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Bytes of the network header (base 1) or the transport header (base 2).
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        register: u32,
    },
    Meta {
        key: u32,
        register: u32,
    },
    MetaSet {
        key: u32,
        register: u32,
    },
    Cmp {
        op: CmpOp,
        data: Vec<u8>,
    },
    /// The first register's four bytes, masked, then XORed.
    Bitwise {
        mask: [u8; 4],
        xor: [u8; 4],
    },
    Immediate {
        register: u32,
        data: Vec<u8>,
    },
    Verdict(Verdict),
    /// Looks the first register up; with `verdict` the set is a map of verdicts.
    Lookup {
        set: String,
        verdict: bool,
    },
    /// To the address in the first register and the port in the second.
    Dnat,
    Masquerade,
    /// A random number below `modulus`, in the machine's byte order.
    Random {
        modulus: u32,
    },
    Reject(Reject),
    /// The kind of the route to the destination, or to the source, into the first register (RTN_LOCAL 2).
    RouteKind {
        source: bool,
    },
    /// Puts the first register into a set, or starts its time anew.
    Remember {
        set: String,
    },
}

const NF_DROP: i32 = 0;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;

impl Verdict {
    pub(super) fn encode(&self, data: &mut Attributes) {
        let (code, chain) = match self {
            Self::Drop => (NF_DROP, None),
            Self::Jump(chain) => (NFT_JUMP, Some(chain)),
            Self::Goto(chain) => (NFT_GOTO, Some(chain)),
        };
        // NFTA_DATA_VERDICT
        data.nest(2, |verdict| {
            verdict.bytes(1, &code.to_be_bytes());
            if let Some(chain) = chain {
                verdict.text(2, chain);
            }
        });
    }
}

fn value(attributes: &mut Attributes, kind: u16, bytes: &[u8]) {
    attributes.nest(kind, |data| data.bytes(1, bytes));
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Cmp { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Lookup { .. } => "lookup",
            Self::Dnat => "nat",
            Self::Masquerade => "masq",
            Self::Random { .. } => "numgen",
            Self::Reject(_) => "reject",
            Self::RouteKind { .. } => "fib",
            Self::Remember { .. } => "dynset",
        }
    }

    /// NFTA_LIST_ELEM { NFTA_EXPR_NAME, NFTA_EXPR_DATA }.
    pub(super) fn encode(&self, list: &mut Attributes) {
        list.nest(1, |expr| {
            expr.text(1, self.name());
            expr.nest(2, |data| self.encode_data(data));
        });
    }

    fn encode_data(&self, data: &mut Attributes) {
        use register::FIRST;
        match self {
            Self::Payload {
                base,
                offset,
                length,
                register,
            } => {
                data.number(1, *register);
                data.number(2, *base);
                data.number(3, *offset);
                data.number(4, *length);
            }
            Self::Meta { key, register } => {
                data.number(1, *register);
                data.number(2, *key);
            }
            Self::MetaSet { key, register } => {
                data.number(2, *key);
                data.number(3, *register);
            }
            Self::Cmp { op, data: bytes } => {
                data.number(1, FIRST);
                data.number(2, *op as u32);
                value(data, 3, bytes);
            }
            Self::Bitwise { mask, xor } => {
                data.number(1, FIRST);
                data.number(2, FIRST);
                data.number(3, 4);
                value(data, 4, mask);
                value(data, 5, xor);
            }
            Self::Immediate {
                register,
                data: bytes,
            } => {
                data.number(1, *register);
                value(data, 2, bytes);
            }
            Self::Verdict(verdict) => {
                data.number(1, register::VERDICT);
                data.nest(2, |nested| verdict.encode(nested));
            }
            Self::Lookup { set, verdict } => {
                data.text(1, set);
                data.number(2, FIRST);
                if *verdict {
                    data.number(3, register::VERDICT);
                }
            }
            Self::Dnat => {
                data.number(1, 1); // NFT_NAT_DNAT
                data.number(2, 2); // NFPROTO_IPV4
                data.number(3, FIRST);
                data.number(5, register::SECOND);
            }
            Self::Masquerade => {}
            Self::Random { modulus } => {
                data.number(1, FIRST);
                data.number(2, *modulus);
                data.number(3, 1); // NFT_NG_RANDOM
            }
            Self::Reject(reject) => {
                let (kind, code) = match reject {
                    Reject::PortUnreachable => (0, 3), // ICMP_PORT_UNREACH
                    Reject::TcpReset => (1, 0),
                };
                data.number(1, kind);
                data.bytes(2, &[code]);
            }
            Self::RouteKind { source } => {
                data.number(1, FIRST);
                data.number(2, 3); // NFT_FIB_RESULT_ADDRTYPE
                data.number(3, if *source { 1 } else { 2 }); // NFTA_FIB_F_SADDR, _DADDR
            }
            Self::Remember { set } => {
                data.text(1, set);
                data.number(3, 1); // NFT_DYNSET_OP_UPDATE
                data.number(4, FIRST);
            }
        }
    }
}
