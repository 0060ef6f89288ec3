//! Where in an object a validator is, without building a string until there is an error to report.
//!
//! A path is a chain of segments on the stack: `root("spec").child("containers").index(0)` prints
//! `spec.containers[0]`.

use std::fmt;

#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

/// A path of one name; an empty name stands for the whole object.
pub fn root(name: &str) -> Path<'_> {
    Path {
        parent: None,
        segment: Segment::Name(name),
    }
}

impl<'a> Path<'a> {
    pub fn child<'b>(&'b self, name: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path {
            parent: Some(self),
            segment: Segment::Name(name),
        }
    }

    pub fn index<'b>(&'b self, index: usize) -> Path<'b>
    where
        'a: 'b,
    {
        Path {
            parent: Some(self),
            segment: Segment::Index(index),
        }
    }

    /// An entry of a map: printed `[key]`.
    pub fn key<'b>(&'b self, key: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path {
            parent: Some(self),
            segment: Segment::Key(key),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut below_root = false;
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            below_root = parent.parent.is_some() || !matches!(parent.segment, Segment::Name(""));
        }
        match self.segment {
            Segment::Name(name) if below_root => write!(f, ".{name}"),
            Segment::Name(name) => f.write_str(name),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) => write!(f, "[{key}]"),
        }
    }
}
