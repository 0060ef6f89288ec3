//! Label and field selectors: parsing with upstream's words, and matching.
//!
//! Enter at [`Labels::parse`] for a `labelSelector` parameter, [`Labels::from_object`] for the
//! `LabelSelector` of an object, and [`Fields::parse`] for a `fieldSelector` parameter.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::error::print_value;
use crate::name;

/// Why a selector cannot be used; the text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

fn fail<T>(text: String) -> Result<T, SelectorError> {
    Err(SelectorError(text))
}

/// All requirements have to hold; none at all selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Sorted by key.
    pub requirements: Vec<Requirement>,
    /// A missing `LabelSelector` object selects nothing, an empty one everything.
    pub nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without repeats.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl Labels {
    pub fn everything() -> Self {
        Labels::default()
    }

    /// Parses `a=b,c in (d,e),!f,g>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser {
            tokens: tokens(text),
            position: 0,
        };
        let mut requirements = parser.requirements()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels {
            requirements,
            nothing: false,
        })
    }

    /// The selector of an object; `None` selects nothing.
    pub fn from_object(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else {
            return Ok(Labels {
                requirements: Vec::new(),
                nothing: true,
            });
        };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(
                key.clone(),
                Operator::Equals,
                vec![value.clone()],
            )?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return fail(format!("{other:?} is not a valid label selector operator")),
            };
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(Requirement::new(expression.key.clone(), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels {
            requirements,
            nothing: false,
        })
    }

    /// Every pair of a plain map (a Service's selector) has to be there.
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Labels {
            requirements: map.iter().map(requirement).collect(),
            nothing: false,
        }
    }

    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| {
            labels
                .and_then(|labels| labels.get(key))
                .map(String::as_str)
        })
    }

    /// As [`Labels::matches`], over any look-up of a label's value.
    pub fn matches_with<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self
                .requirements
                .iter()
                .all(|requirement| requirement.matches(value_of(&requirement.key)))
    }

    pub fn selects_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

impl Requirement {
    pub fn new(
        key: String,
        operator: Operator,
        mut values: Vec<String>,
    ) -> Result<Self, SelectorError> {
        let mut errors = Vec::new();
        let complaints = name::qualified_name(&key);
        if !complaints.is_empty() {
            errors.push(format!(
                "key: Invalid value: {}: {}",
                print_value(&key),
                complaints.join("; ")
            ));
        }
        let wrong_count = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals
                if values.len() != 1 =>
            {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(detail) = wrong_count {
            errors.push(format!(
                "values: Invalid value: {}: {detail}",
                print_value(&values)
            ));
        }
        for (index, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan)
                && value.parse::<i64>().is_err()
            {
                errors.push(format!(
                    "values[{index}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                    print_value(value)
                ));
            }
            let complaints = name::label_value(value);
            if !complaints.is_empty() {
                errors.push(format!(
                    "values[{index}][{key}]: Invalid value: {}: {}",
                    print_value(value),
                    complaints.join("; ")
                ));
            }
        }
        match errors.len() {
            0 => {}
            1 => return fail(errors.remove(0)),
            _ => return fail(format!("[{}]", errors.join(", "))),
        }
        values.sort();
        values.dedup();
        Ok(Requirement {
            key,
            operator,
            values,
        })
    }

    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|listed| listed == value);
        let compare = |value: &str| {
            Some((
                value.parse::<i64>().ok()?,
                self.values.first()?.parse::<i64>().ok()?,
            ))
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => value
                .and_then(compare)
                .is_some_and(|(value, bound)| value > bound),
            Operator::LessThan => value
                .and_then(compare)
                .is_some_and(|(value, bound)| value < bound),
        }
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// Also the words `in` and `notin`, which are values where a value is expected.
    Word(&'a str),
    Symbol(&'a str),
    /// Special characters that are no operator.
    Garbage(String),
    End,
}

impl Token<'_> {
    /// As error messages show it.
    fn text(&self) -> String {
        match self {
            Token::Word(text) | Token::Symbol(text) => (*text).to_string(),
            Token::Garbage(text) => format!("error expected: keyword found '{text}'"),
            Token::End => String::new(),
        }
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self, Token::Symbol(text) if *text == symbol)
    }
}

const SYMBOLS: [&str; 9] = ["==", "!=", ")", ",", "!", "=", ">", "<", "("];

fn tokens(text: &str) -> Vec<Token<'_>> {
    let special = |character: char| "=!(),><".contains(character);
    let blank = |character: char| matches!(character, ' ' | '\t' | '\r' | '\n');
    // A NUL ends the text, as it does upstream.
    let mut rest = text.split('\0').next().unwrap_or("");
    let mut tokens = Vec::new();
    loop {
        rest = rest.trim_start_matches(blank);
        if rest.is_empty() {
            tokens.push(Token::End);
            return tokens;
        }
        if rest.starts_with(special) {
            match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
                Some(symbol) => {
                    tokens.push(Token::Symbol(symbol));
                    rest = &rest[symbol.len()..];
                }
                None => {
                    let end = rest
                        .find(|character| !special(character))
                        .unwrap_or(rest.len());
                    tokens.push(Token::Garbage(rest[..end].to_string()));
                    rest = &rest[end..];
                }
            }
        } else {
            let end = rest
                .find(|character| special(character) || blank(character))
                .unwrap_or(rest.len());
            tokens.push(Token::Word(&rest[..end]));
            rest = &rest[end..];
        }
    }
}

struct Parser<'a> {
    /// Ends with [`Token::End`], which is never moved past.
    tokens: Vec<Token<'a>>,
    position: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &Token<'a> {
        &self.tokens[self.position.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek().clone();
        self.position += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(requirements),
                token if matches!(token, Token::Word(_)) || token.is("!") => {
                    let requirement = self.requirement();
                    requirements.push(requirement.map_err(|cause| {
                        SelectorError(format!("unable to parse requirement: {cause}"))
                    })?);
                    match self.next() {
                        Token::End => return Ok(requirements),
                        token if token.is(",") => {
                            let next = self.peek();
                            if !(matches!(next, Token::Word(_)) || next.is("!")) {
                                return fail(format!(
                                    "found '{}', expected: identifier after ','",
                                    next.text()
                                ));
                            }
                        }
                        token => {
                            return fail(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                token.text()
                            ));
                        }
                    }
                }
                token => {
                    return fail(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        token.text()
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let negated = token.is("!");
        if negated {
            token = self.next();
        }
        let Token::Word(key) = token else {
            return fail(format!("found '{}', expected: identifier", token.text()));
        };
        let complaints = name::qualified_name(key);
        if !complaints.is_empty() {
            return fail(format!(
                "<nil>: Invalid value: {}: {}",
                print_value(key),
                complaints.join("; ")
            ));
        }
        if negated {
            return Requirement::new(key.to_string(), Operator::DoesNotExist, Vec::new());
        }
        if *self.peek() == Token::End || self.peek().is(",") {
            return Requirement::new(key.to_string(), Operator::Exists, Vec::new());
        }
        let token = self.next();
        let operator = match token {
            Token::Word("in") => Operator::In,
            Token::Word("notin") => Operator::NotIn,
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            _ => {
                return fail(format!(
                    "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                    token.text()
                ));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.value_set()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key.to_string(), operator, values)
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if *self.peek() == Token::End || self.peek().is(",") {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => Ok(value.to_string()),
            token => fail(format!("found '{}', expected: identifier", token.text())),
        }
    }

    /// `(a,b,,)`: empty places are the empty value.
    fn value_set(&mut self) -> Result<Vec<String>, SelectorError> {
        let open = self.next();
        if !open.is("(") {
            return fail(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        if self.peek().is(")") {
            self.next();
            return Ok(vec![String::new()]);
        }
        if !(matches!(self.peek(), Token::Word(_)) || self.peek().is(",")) {
            return fail(format!(
                "found '{}', expected: ',', ')' or identifier",
                self.peek().text()
            ));
        }
        loop {
            match self.next() {
                Token::Word(value) => {
                    values.push(value.to_string());
                    if self.peek().is(")") {
                        break;
                    }
                    if !self.peek().is(",") {
                        return fail(format!(
                            "found '{}', expected: ',' or ')'",
                            self.peek().text()
                        ));
                    }
                }
                token if token.is(",") => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    if self.peek().is(")") {
                        values.push(String::new());
                        break;
                    }
                    if self.peek().is(",") {
                        values.push(String::new());
                    }
                }
                token => {
                    return fail(format!(
                        "found '{}', expected: ',', or identifier",
                        token.text()
                    ));
                }
            }
        }
        self.next();
        Ok(values)
    }
}

/// `metadata.name=a,status.phase!=b`: all terms have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    pub terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    /// `!=`
    pub negated: bool,
}

impl Fields {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let split = part.char_indices().find_map(|(index, _)| {
                ["!=", "==", "="]
                    .iter()
                    .find(|operator| part[index..].starts_with(**operator))
                    .map(|operator| (index, *operator))
            });
            let Some((index, operator)) = split else {
                return fail(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                ));
            };
            terms.push(FieldTerm {
                field: part[..index].to_string(),
                value: unescape(&part[index + operator.len()..])?,
                negated: operator == "!=",
            });
        }
        // By meaning, not by text: `==` and `=` are one operator.
        terms.sort();
        Ok(Fields { terms })
    }

    /// Complains about a field that the kind cannot be selected by; `names` besides the metadata's.
    pub fn check_supported(&self, names: &[&str]) -> Result<(), SelectorError> {
        for term in &self.terms {
            let field = term.field.as_str();
            if matches!(field, "metadata.name" | "metadata.namespace") || names.contains(&field) {
                continue;
            }
            return if names.is_empty() {
                fail(format!(
                    "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                ))
            } else {
                fail(format!("field label not supported: {field}"))
            };
        }
        Ok(())
    }

    /// `value_of` answers with the value of a field; fields without one count as empty.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms
            .iter()
            .all(|term| (value_of(&term.field).unwrap_or("") == term.value) != term.negated)
    }

    /// The value that `field` has to have, if one term says so.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|term| !term.negated && term.field == field)
            .map(|term| term.value.as_str())
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            let operator = if term.negated { "!=" } else { "=" };
            let value = term
                .value
                .replace('\\', "\\\\")
                .replace(',', "\\,")
                .replace('=', "\\=");
            write!(f, "{separator}{}{operator}{value}", term.field)?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes, in sorted order as upstream reports errors.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms.sort_unstable();
    terms
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let mut value = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => value.push(escaped),
                Some(other) => {
                    return fail(format!(
                        "invalid field selector: invalid escape sequence: \\{other}"
                    ));
                }
                None => {
                    return fail("invalid field selector: invalid escape sequence: \\".to_string());
                }
            },
            ',' | '=' => {
                return fail(format!(
                    "invalid field selector: unescaped character in value: {}",
                    u32::from(character)
                ));
            }
            other => value.push(other),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn label_selectors_match() {
        for (selector, object, expect) in [
            ("", "a=1", true),
            ("a", "a=1", true),
            ("!a", "a=1", false),
            ("!b", "a=1", true),
            ("a=1", "a=1", true),
            ("a==1,b=2", "a=1,b=2", true),
            ("a!=1", "b=1", true),
            ("a!=1", "a=1", false),
            ("a in (1,2)", "a=2", true),
            ("a in (1, 2 )", "a=3", false),
            ("a notin (1,2)", "b=1", true),
            ("a in (in,notin)", "a=notin", true),
            ("a=", "a=", true),
            ("a in ()", "a=", true),
            ("a in (,x)", "a=", true),
            ("a>1", "a=2", true),
            ("a<1", "a=2", false),
            ("a>1", "a=x", false),
            ("in", "in=1", true),
        ] {
            assert_eq!(
                Labels::parse(selector)
                    .unwrap()
                    .matches(Some(&labels(object))),
                expect,
                "{selector} {object}"
            );
        }
    }

    #[test]
    fn label_selector_errors() {
        for (selector, expect) in [
            (
                ",",
                "found ',', expected: !, identifier, or 'end of string'",
            ),
            ("a,", "found '', expected: identifier after ','"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("a=1=2", "found '=', expected: ',' or 'end of string'"),
            (
                "a in 1",
                "unable to parse requirement: found '1' expected: '('",
            ),
            (
                "a in (1",
                "unable to parse requirement: found '', expected: ',' or ')'",
            ),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(
                Labels::parse(selector).unwrap_err().to_string(),
                expect,
                "{selector}"
            );
        }
        let text = Labels::parse("-a=1").unwrap_err().to_string();
        assert!(
            text.starts_with(
                "unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist"
            ),
            "{text}"
        );
        let text = Labels::parse("a=-").unwrap_err().to_string();
        assert!(
            text.starts_with(
                "unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid label"
            ),
            "{text}"
        );
    }

    #[test]
    fn field_selectors() {
        let check = |selector: &str, expect: bool| {
            let value = |field: &str| match field {
                "metadata.name" => Some("a,b=c\\"),
                "status.phase" => Some("Running"),
                _ => None,
            };
            assert_eq!(
                Fields::parse(selector).unwrap().matches(value),
                expect,
                "{selector}"
            );
        };
        check("", true);
        check("status.phase=Running", true);
        check("status.phase==Running,spec.nodeName=", true);
        check("status.phase!=Running", false);
        check(r"metadata.name=a\,b\=c\\", true);
        for (selector, expect) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            (
                "a=b=c",
                "invalid field selector: unescaped character in value: 61",
            ),
            (
                r"a=\x",
                r"invalid field selector: invalid escape sequence: \x",
            ),
        ] {
            assert_eq!(Fields::parse(selector).unwrap_err().to_string(), expect);
        }
        for text in ["==ta,=statu", "a==b,a=a,a!=b"] {
            let fields = Fields::parse(text).unwrap();
            assert_eq!(Fields::parse(&fields.to_string()), Ok(fields), "{text}");
        }
        let fields = Fields::parse("spec.foo=1").unwrap();
        assert_eq!(
            fields
                .check_supported(&["status.phase"])
                .unwrap_err()
                .to_string(),
            "field label not supported: spec.foo"
        );
        assert_eq!(
            fields.check_supported(&[]).unwrap_err().to_string(),
            "\"spec.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }

    #[test]
    fn objects() {
        assert!(!Labels::from_object(None).unwrap().matches(None));
        assert!(
            Labels::from_object(Some(&LabelSelector::default()))
                .unwrap()
                .matches(None)
        );
        let selector: LabelSelector = serde_json::from_str(
            r#"{"matchLabels":{"a":"1"},"matchExpressions":[{"key":"b","operator":"NotIn","values":["2","1"]}]}"#,
        )
        .unwrap();
        let parsed = Labels::from_object(Some(&selector)).unwrap();
        assert_eq!(parsed.to_string(), "a=1,b notin (1,2)");
        assert!(parsed.matches(Some(&labels("a=1,b=3"))));
    }

    proptest! {
        #[test]
        fn safety_label_selectors_never_panic(text in "[a-z!=<>(), \\-]{0,24}") {
            if let Ok(selector) = Labels::parse(&text) {
                // What prints parses back to the same.
                prop_assert_eq!(Labels::parse(&selector.to_string()), Ok(selector));
            }
        }

        #[test]
        fn safety_any_text(text in ".{0,24}") {
            let _ = (Labels::parse(&text), Fields::parse(&text));
        }

        #[test]
        fn fields_print_as_they_parse(text in "[a-c.]{1,4}(=|==|!=)[a-c\\\\,=]{0,6}") {
            if let Ok(fields) = Fields::parse(&text) {
                prop_assert_eq!(Fields::parse(&fields.to_string()), Ok(fields));
            }
        }
    }
}
