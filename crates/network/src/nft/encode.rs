//! Bytes of nfnetlink batches: netlink headers, attributes, and the messages of nftables that we send.

use super::{Chain, Expr, KeyType, Set, Verdict};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// Everything that there is.
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const HEADER_BYTES: usize = 16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
pub(super) const SUBSYSTEM: u16 = 10;
const NESTED: u16 = 0x8000;
pub(super) const FAMILY_IPV4: u8 = 2;
const FAMILY_NONE: u8 = 0;

pub(super) const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

/// An attribute's length has 16 bits; a list of elements is cut well below.
const ELEMENTS_PER_MESSAGE: usize = 256;
/// Entries of a set of clients; the oldest are not pushed out, new clients are then not remembered.
const RECENT_SIZE: u32 = 65_536;
/// Sequence of a request that is no batch.
pub const REQUEST_SEQUENCE: u32 = 1;

/// Attributes written one after the other into a message.
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("values are names, keys and numbers");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// A number of 32 bits, in network order as all of nftables' numbers are.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Attributes)) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        content(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start)
            .expect("lists are cut below 64 KiB, rules are short");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
    }
}

fn message(
    bytes: &mut Vec<u8>,
    (kind, flags, sequence): (u16, u16, u32),
    (family, resource): (u8, u16),
    content: impl FnOnce(&mut Attributes),
) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    content(&mut Attributes(bytes));
    let length = u32::try_from(bytes.len() - start).expect("a message is far below 4 GiB");
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// The request for one table, which is acknowledged if it is there.
pub fn table_request(table: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    message(
        &mut bytes,
        (SUBSYSTEM << 8 | GET_TABLE, NLM_F_ACK, REQUEST_SEQUENCE),
        (FAMILY_IPV4, 0),
        |attributes| attributes.text(1, table),
    );
    bytes
}

/// The request for the chains of all tables.
pub fn chains_request() -> Vec<u8> {
    let mut bytes = Vec::new();
    message(
        &mut bytes,
        (SUBSYSTEM << 8 | GET_CHAIN, NLM_F_DUMP, REQUEST_SEQUENCE),
        (FAMILY_NONE, 0),
        |_| {},
    );
    bytes
}

/// The request for the rules of one chain.
pub fn chain_rules_request(family: u8, table: &str, chain: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    message(
        &mut bytes,
        (SUBSYSTEM << 8 | GET_RULE, NLM_F_DUMP, REQUEST_SEQUENCE),
        (family, 0),
        |attributes| {
            attributes.text(1, table);
            attributes.text(2, chain);
        },
    );
    bytes
}

pub struct Batch {
    table: String,
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message begins.
    last: usize,
    set_count: u32,
}

impl Batch {
    pub fn new(table: &str) -> Self {
        let mut bytes = Vec::new();
        message(
            &mut bytes,
            (BATCH_BEGIN, 0, 0),
            (FAMILY_NONE, SUBSYSTEM),
            |_| {},
        );
        Self {
            table: table.to_owned(),
            bytes,
            sequence: 0,
            last: 0,
            set_count: 0,
        }
    }

    /// The bytes and the sequence number of the last message, which is acknowledged; `None` if there is nothing to do.
    pub fn finish(mut self) -> Option<(Vec<u8>, u32)> {
        if self.sequence == 0 {
            return None;
        }
        let flags = self.last + 6;
        let mut value = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]);
        value |= NLM_F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&value.to_ne_bytes());
        message(
            &mut self.bytes,
            (BATCH_END, 0, self.sequence + 1),
            (FAMILY_NONE, SUBSYSTEM),
            |_| {},
        );
        Some((self.bytes, self.sequence))
    }

    /// All messages begin with the table's name, attribute 1.
    fn push(&mut self, kind: u16, flags: u16, content: impl FnOnce(&mut Attributes)) {
        self.sequence += 1;
        self.last = self.bytes.len();
        let table = &self.table;
        message(
            &mut self.bytes,
            (SUBSYSTEM << 8 | kind, flags, self.sequence),
            (FAMILY_IPV4, 0),
            |attributes| {
                attributes.text(1, table);
                content(attributes);
            },
        );
    }

    pub fn add_table(&mut self) {
        self.push(NEW_TABLE, NLM_F_CREATE, |table| table.number(2, 0));
    }

    pub fn delete_table(&mut self) {
        self.push(DELETE_TABLE, 0, |_| {});
    }

    pub fn add_chain(&mut self, name: &str, chain: &Chain) {
        self.push(NEW_CHAIN, NLM_F_CREATE, |attributes| {
            attributes.text(3, name);
            if let Some(hook) = chain.hook {
                attributes.nest(4, |nested| {
                    nested.number(1, hook.number);
                    nested.bytes(2, &hook.priority.to_be_bytes());
                });
                attributes.number(5, 1); // policy accept
                attributes.text(7, hook.kind);
            }
        });
    }

    pub fn delete_chain(&mut self, name: &str) {
        self.push(DELETE_CHAIN, 0, |attributes| attributes.text(3, name));
    }

    pub fn flush_chain(&mut self, name: &str) {
        self.push(DELETE_RULE, 0, |attributes| attributes.text(2, name));
    }

    pub fn add_rule(&mut self, chain: &str, rule: &[Expr]) {
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |attributes| {
            attributes.text(2, chain);
            attributes.nest(4, |list| rule.iter().for_each(|expr| expr.encode(list)));
        });
    }

    pub fn add_set(&mut self, name: &str, set: &Set) {
        self.set_count += 1;
        let id = self.set_count;
        self.push(NEW_SET, NLM_F_CREATE, |attributes| {
            attributes.text(2, name);
            let key = match set {
                Set::VerdictMap { key, .. } | Set::Recent { key, .. } => *key,
            };
            let (kind, length) = key.encoded();
            let flags = match set {
                Set::VerdictMap { .. } => 0x8,     // map
                Set::Recent { .. } => 0x10 | 0x20, // timeout, written by rules
            };
            attributes.number(3, flags);
            attributes.number(4, kind);
            attributes.number(5, length);
            match set {
                Set::VerdictMap { .. } => {
                    attributes.number(6, 0xffff_ff00); // NFT_DATA_VERDICT
                    attributes.number(7, 0);
                }
                Set::Recent { timeout_millis, .. } => {
                    attributes.nest(9, |description| description.number(1, RECENT_SIZE));
                    attributes.bytes(11, &timeout_millis.to_be_bytes());
                }
            }
            attributes.number(10, id);
        });
    }

    pub fn delete_set(&mut self, name: &str) {
        self.push(DELETE_SET, 0, |attributes| attributes.text(2, name));
    }

    pub fn add_elements<'a>(
        &mut self,
        set: &str,
        elements: impl Iterator<Item = (&'a Vec<u8>, &'a String)>,
    ) {
        self.elements(NEW_ELEMENT, NLM_F_CREATE, set, elements);
    }

    pub fn delete_elements<'a>(
        &mut self,
        set: &str,
        elements: impl Iterator<Item = (&'a Vec<u8>, &'a String)>,
    ) {
        self.elements(DELETE_ELEMENT, 0, set, elements);
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        set: &str,
        elements: impl Iterator<Item = (&'a Vec<u8>, &'a String)>,
    ) {
        let all: Vec<_> = elements.collect();
        for some in all.chunks(ELEMENTS_PER_MESSAGE) {
            self.push(kind, flags, |attributes| {
                attributes.text(2, set);
                attributes.nest(3, |list| {
                    for (key, chain) in some {
                        list.nest(1, |element| {
                            element.nest(1, |data| data.bytes(1, key));
                            if kind == NEW_ELEMENT {
                                let verdict = Verdict::Goto((*chain).clone());
                                element.nest(2, |data| verdict.encode(data));
                            }
                        });
                    }
                });
            });
        }
    }
}

impl KeyType {
    /// The type number by which the program `nft` shows keys, six bits a part, and the key's length.
    fn encoded(self) -> (u32, u32) {
        const ADDRESS: u32 = 7;
        const PROTOCOL: u32 = 12;
        const SERVICE: u32 = 13;
        const INTEGER: u32 = 4;
        match self {
            Self::Address => (ADDRESS, 4),
            Self::Index => (INTEGER, 4),
            Self::Port => (PROTOCOL << 6 | SERVICE, 8),
            Self::AddressPort => (ADDRESS << 12 | PROTOCOL << 6 | SERVICE, 12),
        }
    }
}

pub struct Answer {
    pub sequence: u32,
    /// A negative error number, or 0.
    pub error: i32,
}

/// The acknowledgements and errors in a datagram.
pub fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let word = |bytes: &[u8], at: usize| {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let mut answers = Vec::new();
    while bytes.len() >= HEADER_BYTES + 4 {
        let length = word(bytes, 0) as usize;
        if length < HEADER_BYTES || length > bytes.len() {
            break;
        }
        if u16::from_ne_bytes([bytes[4], bytes[5]]) == NLMSG_ERROR && length >= HEADER_BYTES + 4 {
            answers.push(Answer {
                sequence: word(bytes, 8),
                error: word(bytes, HEADER_BYTES).cast_signed(),
            });
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    answers
}
