//! What names, label keys and values, ports and the like may look like, in upstream's words.
//!
//! Every check answers with the list of complaints, empty when the value is good, as
//! `k8s.io/apimachinery/pkg/util/validation` does; the good path allocates nothing. The patterns
//! are matched by hand: compiled ones cost more than the rest of a validation.

/// Complaints about one value; empty (and unallocated) when it is good.
pub type Complaints = Vec<String>;

pub const DNS1123_LABEL_MAX: usize = 63;
pub const DNS1123_SUBDOMAIN_MAX: usize = 253;
pub const LABEL_VALUE_MAX: usize = 63;

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// `message (e.g. 'a',  or 'b', regex used for validation is 'pattern')`.
pub fn pattern_complaint(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples
        .iter()
        .map(|example| format!("'{example}', "))
        .collect();
    format!(
        "{message} (e.g. {}regex used for validation is '{pattern}')",
        examples.join(" or ")
    )
}

pub fn range_complaint(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn matches_dns1123_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if lower_alphanumeric(first) && lower_alphanumeric(last))
        && bytes
            .iter()
            .all(|&byte| lower_alphanumeric(byte) || byte == b'-')
}

fn matches_dns1123_subdomain(value: &str) -> bool {
    value.split('.').all(matches_dns1123_label)
}

pub fn dns1123_label(value: &str) -> Complaints {
    let mut complaints = Vec::new();
    if value.len() > DNS1123_LABEL_MAX {
        complaints.push(format!(
            "must be no more than {DNS1123_LABEL_MAX} characters"
        ));
    }
    if !matches_dns1123_label(value) {
        complaints.push(if matches_dns1123_subdomain(value) {
            "must not contain dots".to_string()
        } else {
            pattern_complaint(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                DNS1123_LABEL,
                &["my-name", "123-abc"],
            )
        });
    }
    complaints
}

fn dns1123_subdomain_in(value: &str, unit: &str) -> Complaints {
    let mut complaints = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        complaints.push(format!(
            "must be no more than {DNS1123_SUBDOMAIN_MAX} {unit}"
        ));
    }
    if !matches_dns1123_subdomain(value) {
        complaints.push(pattern_complaint(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            DNS1123_SUBDOMAIN,
            &["example.com"],
        ));
    }
    complaints
}

pub fn dns1123_subdomain(value: &str) -> Complaints {
    dns1123_subdomain_in(value, "characters")
}

/// A DNS-1123 subdomain whose labels may also hold `_` (DNS search paths).
pub fn dns1123_subdomain_with_underscore(value: &str) -> Complaints {
    fn label(value: &str) -> bool {
        let value = value.strip_prefix('_').unwrap_or(value).as_bytes();
        matches!((value.first(), value.last()), (Some(&first), Some(&last)) if lower_alphanumeric(first) && lower_alphanumeric(last))
            && value
                .iter()
                .all(|&byte| lower_alphanumeric(byte) || byte == b'-' || byte == b'_')
    }
    let mut complaints = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        complaints.push(format!(
            "must be no more than {DNS1123_SUBDOMAIN_MAX} characters"
        ));
    }
    if !value.split('.').all(label) {
        complaints.push(pattern_complaint(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    complaints
}

pub fn dns1035_label(value: &str) -> Complaints {
    let mut complaints = Vec::new();
    if value.len() > DNS1123_LABEL_MAX {
        complaints.push(format!(
            "must be no more than {DNS1123_LABEL_MAX} characters"
        ));
    }
    if !(matches_dns1123_label(value) && value.as_bytes()[0].is_ascii_lowercase()) {
        complaints.push(pattern_complaint(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    complaints
}

pub fn wildcard_dns1123_subdomain(value: &str) -> Complaints {
    let mut complaints = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        complaints.push(format!(
            "must be no more than {DNS1123_SUBDOMAIN_MAX} characters"
        ));
    }
    if !value
        .strip_prefix("*.")
        .is_some_and(matches_dns1123_subdomain)
    {
        complaints.push(pattern_complaint(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!(r"\*\.{DNS1123_SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    complaints
}

fn matches_label_key(value: &str) -> bool {
    let bytes = value.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

const LABEL_KEY_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// A label key, annotation key or finalizer: `[prefix/]name` (upstream's IsQualifiedName).
pub fn qualified_name(value: &str) -> Complaints {
    let mut complaints = Vec::new();
    let name = match value.split_once('/') {
        None => value,
        Some((_, rest)) if rest.contains('/') => {
            complaints.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                pattern_complaint(LABEL_KEY_RULE, LABEL_KEY, &["MyName", "my.name", "123-abc"])
            ));
            return complaints;
        }
        Some(("", name)) => {
            complaints.push("prefix part must be non-empty".to_string());
            name
        }
        Some((prefix, name)) => {
            complaints.extend(
                dns1123_subdomain_in(prefix, "bytes")
                    .into_iter()
                    .map(|text| format!("prefix part {text}")),
            );
            name
        }
    };
    if name.is_empty() {
        complaints.push("name part must be non-empty".to_string());
    } else if name.len() > LABEL_VALUE_MAX {
        complaints.push(format!(
            "name part must be no more than {LABEL_VALUE_MAX} bytes"
        ));
    }
    if !matches_label_key(name) {
        complaints.push(format!(
            "name part {}",
            pattern_complaint(LABEL_KEY_RULE, LABEL_KEY, &["MyName", "my.name", "123-abc"])
        ));
    }
    complaints
}

pub fn label_value(value: &str) -> Complaints {
    let mut complaints = Vec::new();
    if value.len() > LABEL_VALUE_MAX {
        complaints.push(format!("must be no more than {LABEL_VALUE_MAX} bytes"));
    }
    if !value.is_empty() && !matches_label_key(value) {
        complaints.push(pattern_complaint(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({LABEL_KEY})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    complaints
}

pub fn c_identifier(value: &str) -> Complaints {
    let bytes = value.as_bytes();
    let good = bytes
        .first()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    if good {
        return Vec::new();
    }
    vec![pattern_complaint(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// The relaxed rule, in force since environment names may be any printable ASCII but `=`.
pub fn env_var_name(value: &str) -> Complaints {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".to_string()];
    }
    if value
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
    {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_string()]
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Complaints {
    let mut complaints = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        complaints.push(format!(
            "must be no more than {DNS1123_SUBDOMAIN_MAX} characters"
        ));
    }
    let good = !value.is_empty()
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !good {
        complaints.push(pattern_complaint(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => complaints.push("must not be '.'".to_string()),
        ".." => complaints.push("must not be '..'".to_string()),
        _ if value.starts_with("..") => complaints.push("must not start with '..'".to_string()),
        _ => {}
    }
    complaints
}

/// The name of a container port or of a probe's or service's target port.
pub fn port_name(value: &str) -> Complaints {
    let mut complaints = Vec::new();
    if value.len() > 15 {
        complaints.push("must be no more than 15 characters".to_string());
    }
    let bytes = value.as_bytes();
    if bytes.is_empty()
        || !bytes
            .iter()
            .all(|&byte| lower_alphanumeric(byte) || byte == b'-')
    {
        complaints.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_string(),
        );
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        complaints.push("must contain at least one letter (a-z)".to_string());
    }
    if value.contains("--") {
        complaints.push("must not contain consecutive hyphens".to_string());
    }
    if bytes.first() == Some(&b'-') || bytes.last() == Some(&b'-') {
        complaints.push("must not begin or end with a hyphen".to_string());
    }
    complaints
}

pub fn port_number(value: i64) -> Complaints {
    in_range(value, 1, 65535)
}

pub fn in_range(value: i64, low: i64, high: i64) -> Complaints {
    if (low..=high).contains(&value) {
        Vec::new()
    } else {
        vec![range_complaint(low, high)]
    }
}

pub fn percent(value: &str) -> Complaints {
    let digits = value.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Vec::new();
    }
    vec![pattern_complaint(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

pub fn http_header_name(value: &str) -> Complaints {
    if !value.is_empty()
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Vec::new();
    }
    vec![pattern_complaint(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A name that only has to fit into a URL path (RBAC kinds).
pub fn path_segment(value: &str, prefix: bool) -> Complaints {
    if !prefix && (value == "." || value == "..") {
        return vec![format!("may not be '{value}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|bad| value.contains(**bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// Which rule a kind's `metadata.name` follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    Dns1123Subdomain,
    Dns1123Label,
    Dns1035Label,
    PathSegment,
    /// No rule at all (kinds that are never stored).
    Any,
}

impl NameRule {
    /// Checks a name, or (`prefix`) a generateName, whose trailing dash will be followed by something.
    pub fn check(self, name: &str, prefix: bool) -> Complaints {
        let masked;
        let name =
            if prefix && name.len() > 1 && name.ends_with('-') && self != NameRule::PathSegment {
                // Upstream cuts two bytes and adds one: keep the length rule the same as there.
                masked = format!("{}a", name.get(..name.len() - 2).unwrap_or(""));
                &masked
            } else {
                name
            };
        match self {
            NameRule::Dns1123Subdomain => dns1123_subdomain(name),
            NameRule::Dns1123Label => dns1123_label(name),
            NameRule::Dns1035Label => dns1035_label(name),
            NameRule::PathSegment => path_segment(name, prefix),
            NameRule::Any => Vec::new(),
        }
    }
}

/// The alphabet of generated suffixes: no vowels and no look-alikes, so that no words appear.
pub const GENERATED_SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
pub const GENERATED_SUFFIX_LENGTH: usize = 5;

/// A name from a `generateName`: the base cut to fit, then five characters picked by `random`.
pub fn generated(base: &str, random: [u8; GENERATED_SUFFIX_LENGTH]) -> String {
    let mut end = base.len().min(DNS1123_LABEL_MAX - GENERATED_SUFFIX_LENGTH);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = String::with_capacity(end + GENERATED_SUFFIX_LENGTH);
    name.push_str(&base[..end]);
    name.extend(random.iter().map(|byte| {
        char::from(GENERATED_SUFFIX_ALPHABET[usize::from(*byte) % GENERATED_SUFFIX_ALPHABET.len()])
    }));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_all(rule: fn(&str) -> Complaints, good: &[&str], bad: &[&str]) {
        for value in good {
            assert_eq!(rule(value), Vec::<String>::new(), "{value:?}");
        }
        for value in bad {
            assert!(!rule(value).is_empty(), "{value:?}");
        }
    }

    #[test]
    fn rules() {
        let long = "a".repeat(64);
        check_all(
            dns1123_label,
            &["a", "a1", "0", "a-b", &"a".repeat(63)],
            &["", "A", "a-", "-a", "a.b", "a_b", "ä", &long],
        );
        check_all(
            dns1123_subdomain,
            &["a", "a.b", "1.2.3", "a-b.c"],
            &["", ".", "a..b", "a.", "A.b", "a_b", &"a".repeat(254)],
        );
        check_all(
            dns1035_label,
            &["a", "a1", "a-1"],
            &["", "1a", "a-", "a.b", &long],
        );
        check_all(
            qualified_name,
            &["a", "A.b_c-d", "x/y", "example.com/My.Name", "1"],
            &[
                "", "/", "a/", "/a", "a/b/c", "A/b", "-a", "a-", "a b", &long,
            ],
        );
        check_all(
            label_value,
            &["", "a", "A_1.b", "0"],
            &["-", "a-", "a b", &long],
        );
        check_all(
            config_map_key,
            &["a", ".a", "a..b", "...".trim_end_matches("..")]
                .map(|v| if v == "." { "_" } else { v }),
            &["", ".", "..", "..a", "a/b"],
        );
        check_all(
            port_name,
            &["http", "a1", "1a", "a-b"],
            &["", "1", "a--b", "-a", "a-", "A", "abcdefghijklmnop"],
        );
        check_all(percent, &["0%", "100%"], &["", "%", "1", "a%", "-1%"]);
        check_all(
            env_var_name,
            &["a", "1", "a b", "A.B"],
            &["", "a=b", "ä", "\n"],
        );
        check_all(c_identifier, &["a", "_1", "A"], &["", "1", "a-b"]);
        check_all(http_header_name, &["X-A"], &["", "a b", "a:"]);
        check_all(wildcard_dns1123_subdomain, &["*.a"], &["*", "a", "*."]);
        check_all(
            dns1123_subdomain_with_underscore,
            &["_a.b", "a_b"],
            &["", "a-", "__a"],
        );
    }

    #[test]
    fn words_are_upstreams() {
        let check = |complaints: Complaints, expect: &[&str]| assert_eq!(complaints, expect);
        check(
            dns1123_label("Foo"),
            &[
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ],
        );
        check(dns1123_label("a.b"), &["must not contain dots"]);
        check(
            qualified_name("a/b/c"),
            &[
                "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
            ],
        );
        check(port_number(0), &["must be between 1 and 65535, inclusive"]);
        check(
            path_segment("a/b%", false),
            &["may not contain '/'", "may not contain '%'"],
        );
        check(path_segment("..", false), &["may not be '..'"]);
    }

    #[test]
    fn generated_names_fit() {
        assert_eq!(generated("web-", [0, 1, 2, 3, 4]), "web-bcdfg");
        assert_eq!(
            generated(&"a".repeat(80), [27, 26, 0, 0, 0]),
            format!("{}b9bbb", "a".repeat(58))
        );
        assert!(NameRule::Dns1123Label.check("web-", true).is_empty());
        assert!(!NameRule::Dns1123Label.check("web-", false).is_empty());
    }
}
