//! Service-account tokens: JSON web tokens, signed with ES256, bound to objects.
//!
//! Enter at [`TokenKey::sign`] and [`TokenKey::verify`]; both know only claims. Whether the objects that a
//! token is bound to still exist is checked by [`super::service_account`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Verified tokens that are remembered, so that their signatures are checked once.
const CACHE_MAX: usize = 1024;

/// What a token says, with upstream's private claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(default, deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    #[serde(default)]
    pub nbf: i64,
    pub sub: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is no JSON web token of this cluster")]
    Malformed,
    #[error("the token was signed by another key than this cluster's")]
    Signature,
    #[error("the token was issued by {0:?}, not by this cluster")]
    Issuer(String),
    #[error("the token expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is for the audiences {found:?}, not for {expected:?}")]
    Audience {
        found: Vec<String>,
        expected: Vec<String>,
    },
    #[error("the token's {0} no longer exists")]
    Unbound(String),
}

/// The signing key and the tokens seen so far.
pub struct TokenKey {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
    issuer: String,
    verified: Mutex<HashMap<[u8; 32], Claims>>,
}

impl TokenKey {
    /// `pkcs8` is a P-256 key.
    pub fn new(pkcs8: &[u8], issuer: &str) -> Result<Self, ring::error::KeyRejected> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.public_key().as_ref()));
        Ok(Self {
            key,
            random,
            key_id,
            issuer: issuer.into(),
            verified: Mutex::default(),
        })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub fn sign(&self, claims: &Claims) -> Result<String, ring::error::Unspecified> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let payload = serde_json::to_vec(claims).map_err(|_| ring::error::Unspecified)?;
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(payload)
        );
        let signature = self.key.sign(&self.random, signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Checks signature, issuer and time; the audience only if some are named.
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now_seconds: i64,
    ) -> Result<Claims, TokenError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let known = self
            .verified
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&digest)
            .cloned();
        let claims = match known {
            Some(claims) => claims,
            None => {
                let claims = self.verify_signature(token)?;
                let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
                if verified.len() >= CACHE_MAX {
                    verified.clear();
                }
                verified.insert(digest, claims.clone());
                claims
            }
        };
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer(claims.iss));
        }
        if now_seconds >= claims.exp {
            return Err(TokenError::Expired);
        }
        if now_seconds < claims.nbf {
            return Err(TokenError::NotYetValid);
        }
        if !audiences.is_empty()
            && !claims
                .aud
                .iter()
                .any(|audience| audiences.contains(audience))
        {
            return Err(TokenError::Audience {
                found: claims.aud,
                expected: audiences.to_vec(),
            });
        }
        Ok(claims)
    }

    fn verify_signature(&self, token: &str) -> Result<Claims, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| TokenError::Malformed)
        };
        let header: Value =
            serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        // The one algorithm that we sign with: the header cannot choose another, or none.
        if header["alg"] != "ES256" {
            return Err(TokenError::Signature);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)
    }

    /// The public key as `/openid/v1/jwks` shows it.
    pub fn key_set(&self) -> Value {
        let point = self.key.public_key().as_ref();
        // An uncompressed point: 4, x, y.
        let (x, y) = point
            .get(1..)
            .unwrap_or_default()
            .split_at(point.len().saturating_sub(1) / 2);
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn key() -> TokenKey {
        let pair = rcgen::KeyPair::generate().unwrap();
        TokenKey::new(&pair.serialize_der(), "https://issuer").unwrap()
    }

    fn claims() -> Claims {
        Claims {
            aud: vec!["a".into()],
            exp: 1000,
            iat: 100,
            iss: "https://issuer".into(),
            jti: "j".into(),
            kubernetes: KubernetesClaims {
                namespace: "default".into(),
                ..KubernetesClaims::default()
            },
            nbf: 100,
            sub: "system:serviceaccount:default:default".into(),
        }
    }

    #[test]
    fn tokens_are_accepted_within_their_bounds_only() {
        let key = key();
        let token = key.sign(&claims()).unwrap();
        let audience = vec!["a".to_owned()];
        assert_eq!(key.verify(&token, &audience, 500), Ok(claims()));
        assert_eq!(key.verify(&token, &[], 500), Ok(claims()));
        assert_eq!(
            key.verify(&token, &audience, 1000),
            Err(TokenError::Expired)
        );
        assert_eq!(
            key.verify(&token, &audience, 99),
            Err(TokenError::NotYetValid)
        );
        assert!(matches!(
            key.verify(&token, &["b".to_owned()], 500),
            Err(TokenError::Audience { .. })
        ));
        assert_eq!(
            super::tests::key().verify(&token, &audience, 500),
            Err(TokenError::Signature)
        );
    }

    #[test]
    fn tampering_is_noticed() {
        let key = key();
        let token = key.sign(&claims()).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let mut other = claims();
        other.sub = "system:serviceaccount:kube-system:admin".into();
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&other).unwrap());
        for token in [
            format!("{none}.{}.", parts[1]),
            format!("{}.{payload}.{}", parts[0], parts[2]),
            format!("{}.{}", parts[0], parts[1]),
            String::new(),
            "a.b.c".into(),
        ] {
            assert!(key.verify(&token, &[], 500).is_err(), "{token}");
        }
    }
}
