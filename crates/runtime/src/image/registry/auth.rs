//! Authentication as registries ask for it: `WWW-Authenticate` challenges, basic credentials and
//! bearer tokens from a token server (distribution-spec's "token" and "oauth2" flows).

use base64::Engine as _;
use serde::Deserialize;

/// Who asks. Empty fields are not used; an identity token goes before a password.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
}

/// Says who, never the secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({:?})", self.username)
    }
}

impl Credentials {
    pub fn basic(username: &str, password: &str) -> Credentials {
        Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
            identity_token: String::new(),
        }
    }

    /// The value of an `Authorization` header.
    pub(super) fn basic_header(&self) -> String {
        let pair = format!("{}:{}", self.username, self.password);
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(pair)
        )
    }
}

/// One way in that a 401 offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::image) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: String,
        scope: String,
    },
}

/// The challenges of a `WWW-Authenticate` header (RFC 9110, 11.6.1) that are known here.
pub(in crate::image) fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let scheme_end = rest.find([' ', ',']).unwrap_or(rest.len());
        let scheme = &rest[..scheme_end];
        rest = rest[scheme_end..].trim_start_matches([' ', ',']);
        let (mut realm, mut service, mut scope) = (String::new(), String::new(), String::new());
        while let Some((key, value, after)) = parse_parameter(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = value,
                "service" => service = value,
                "scope" => scope = value,
                _ => {}
            }
            rest = after.trim_start_matches([' ', ',']);
        }
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => challenges.push(Challenge::Basic),
            "bearer" if !realm.is_empty() => challenges.push(Challenge::Bearer {
                realm,
                service,
                scope,
            }),
            _ => {}
        }
    }
    challenges
}

/// `key=value` or `key="value"`, and what follows; `None` if the next word is a scheme.
fn parse_parameter(text: &str) -> Option<(&str, String, &str)> {
    let equals = text.find('=')?;
    let key = text[..equals].trim_end();
    if key.is_empty() || key.contains([' ', ',', '"']) {
        return None;
    }
    let value = text[equals + 1..].trim_start();
    let Some(quoted) = value.strip_prefix('"') else {
        let end = value.find([',', ' ']).unwrap_or(value.len());
        return Some((key, value[..end].to_owned(), &value[end..]));
    };
    let mut unquoted = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((key, unquoted, &quoted[at + 1..])),
            '\\' => unquoted.extend(chars.next().map(|(_, c)| c)),
            c => unquoted.push(c),
        }
    }
    Some((key, unquoted, ""))
}

#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl TokenAnswer {
    pub fn into_token(self) -> Option<String> {
        self.token
            .or(self.access_token)
            .filter(|token| !token.is_empty())
    }
}

/// For queries and forms: everything but unreserved characters becomes `%XX`.
pub(super) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_challenges() {
        #[track_caller]
        fn check(header: &str, expect: &[Challenge]) {
            assert_eq!(parse_challenges(header), expect, "{header}");
        }
        let bearer = |realm: &str, service: &str, scope: &str| Challenge::Bearer {
            realm: realm.into(),
            service: service.into(),
            scope: scope.into(),
        };
        check("Basic realm=\"x\"", &[Challenge::Basic]);
        check("basic", &[Challenge::Basic]);
        check(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
            &[bearer(
                "https://auth.docker.io/token",
                "registry.docker.io",
                "repository:a/b:pull,push",
            )],
        );
        check(
            r#"Bearer realm="r\"q", service=s , error="e", Basic realm="x", Negotiate"#,
            &[bearer("r\"q", "s", ""), Challenge::Basic],
        );
        check("Negotiate abc==, Basic realm=x", &[Challenge::Basic]);
        check("Bearer service=x", &[]);
        check("", &[]);
        check(",,, = \" ", &[]);
    }

    proptest::proptest! {
        #[test]
        fn safety_any_header_ends(header in "[A-Za-z=\", \\\\]{0,60}|.{0,60}") {
            let _ = parse_challenges(&header);
        }
    }

    #[test]
    fn secrets_stay_out_of_logs() {
        let credentials = Credentials::basic("user", "hunter2");
        assert_eq!(format!("{credentials:?}"), "Credentials(\"user\")");
        assert_eq!(credentials.basic_header(), "Basic dXNlcjpodW50ZXIy");
        assert_eq!(
            percent_encode("repository:a/b:pull,push é"),
            "repository%3Aa%2Fb%3Apull%2Cpush%20%C3%A9"
        );
    }
}
