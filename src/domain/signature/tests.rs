use super::*;
use crate::domain::id::SecretId;

fn live(text: &str, expires_at: Option<i64>) -> LiveSecret {
    LiveSecret {
        id: SecretId::new(),
        secret: SigningSecret::parse(text).expect("valid"),
        expires_at: expires_at.map(Timestamp::from_millis),
    }
}

const A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const B: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const AT: Timestamp = Timestamp::from_millis(1_614_265_330_000);
const STANDARD_SCHEME: SignatureSettings = SignatureSettings::Standard;

fn header(hash: HashFunction, encoding: Encoding) -> HeaderSettings {
    HeaderSettings { name: DEFAULT_HEADER.to_owned(), hash, encoding }
}

#[test]
fn known_answer_of_the_specification() {
    let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    let value = sign(&STANDARD_SCHEME, &[live(A, None)], id, AT, b"{\"test\": 2432232314}");
    assert_eq!(value, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[test]
fn the_official_library_accepts_every_live_secret() {
    let id = "evt_01h2e8kqvbfwea724h75qc655w";
    let body = "{ \"a\":1, \"a\" : 1152921504606846976 }\r\n é".as_bytes();
    let now = Timestamp::now();
    let ed25519 = SigningSecret::generate(SecretKind::Ed25519);
    let secrets = [
        LiveSecret { id: SecretId::new(), secret: ed25519, expires_at: None },
        live(A, Some(now.as_millis() + 60_000)),
        live(B, Some(now.as_millis() + 60_000)),
    ];
    let value = sign(&STANDARD_SCHEME, &secrets, id, now, body);
    let versions: Vec<&str> = value.split(' ').filter_map(|one| one.split(',').next()).collect();
    assert_eq!(versions, ["v1a", "v1", "v1"], "newest first");
    for secret in [A, B] {
        let mut headers = http::HeaderMap::new();
        headers.insert("webhook-id", id.parse().expect("ascii"));
        headers.insert("webhook-timestamp", now.as_secs().into());
        headers.insert("webhook-signature", value.parse().expect("ascii"));
        let verifier = standardwebhooks::Webhook::new(secret).expect("valid");
        verifier.verify(body, &headers).expect("accepted");
    }
}

#[test]
fn an_ed25519_signature_is_over_the_same_text() {
    use ed25519_dalek::Verifier;
    let secret = SigningSecret::generate(SecretKind::Ed25519);
    let SigningSecret::Ed25519(pair) = &secret else { panic!("an ed25519 key") };
    let public =
        STANDARD.decode(&secret.public_key().expect("one").to_string()["whpk_".len()..]).expect("base64");
    let public =
        ed25519_dalek::VerifyingKey::from_bytes(&public.try_into().expect("32 bytes")).expect("a key");
    let secrets = [LiveSecret { id: SecretId::new(), secret: secret.clone(), expires_at: None }];
    let value = sign(&STANDARD_SCHEME, &secrets, "evt_x", AT, b"body");
    let signature = STANDARD.decode(value.strip_prefix("v1a,").expect("v1a")).expect("base64");
    let signature = ed25519_dalek::Signature::from_slice(&signature).expect("64 bytes");
    public.verify(b"evt_x.1614265330.body", &signature).expect("verifies");
    assert_eq!(pair.sign(b"evt_x.1614265330.body"), signature.to_bytes());
}

/// The first two are of Convoy's own tests, the others were computed as it does.
#[test]
fn known_answers_of_convoy() {
    const BODY: &[u8] =
        br#"{"event":"payment.success","data":{"amount":1000,"currency":"NGN","note":"a<b&c"}}"#;
    let short = SigningSecret::Text(crate::domain::secret::SecretBytes::new(b"secret".to_vec()));
    let short = [LiveSecret { id: SecretId::new(), secret: short, expires_at: None }];
    let (body, at) = (br#"{"b":{},"e":"123","a":1}"#, Timestamp::from_millis(1_257_894_000_000));
    assert_eq!(
        sign(
            &SignatureSettings::Advanced(header(HashFunction::Sha256, Encoding::Hex)),
            &short,
            "evt_x",
            at,
            body
        ),
        "t=1257894000,v1=c97c302e4a991a7d4a72b60c3f9a0c3adb3611cd0acc632994a72ace04d6509c"
    );
    let sha512 = sign(
        &SignatureSettings::Simple(header(HashFunction::Sha512, Encoding::Hex)),
        &short,
        "evt_x",
        at,
        body,
    );
    assert!(sha512.starts_with("c5dcfeda3f5a3154") && sha512.ends_with("aa14d7cc4"), "{sha512}");

    let (a, b) = (live("convoy-secret-1", None), live("convoy-secret-2", None));
    let at = Timestamp::from_millis(1_700_000_000_000);
    let simple = |hash, encoding, secrets: &[LiveSecret]| {
        sign(&SignatureSettings::Simple(header(hash, encoding)), secrets, "evt_x", at, BODY)
    };
    use Encoding::{Base64, Hex};
    use HashFunction::{Sha256, Sha512};
    assert_eq!(
        simple(Sha256, Hex, std::slice::from_ref(&a)),
        "e3e186cdc1494605fc50e64e51b042f7eaefe1221f483237a7eca0ffc2fc1ce5"
    );
    assert_eq!(
        simple(Sha256, Base64, std::slice::from_ref(&a)),
        "4+GGzcFJRgX8UOZOUbBC9+rv4SIfSDI3p+yg/8L8HOU="
    );
    assert_eq!(
        simple(Sha512, Base64, std::slice::from_ref(&a)),
        "+Dj0SXtTqCzHhXdS7AJ79a4TQKRzPKlpRq7liyTgwsiT784rQVLbQyCswZfpgDwjUQ73JMpleiVAdG/GDe2oGA=="
    );
    let newest_first = [b, a];
    assert_eq!(
        simple(Sha256, Hex, &newest_first),
        "75be0076a2d4c63623c6fc387c48800fccfe6ff9e518237acd2fdfc69c6f75bb"
    );
    let advanced = |hash, encoding| {
        sign(&SignatureSettings::Advanced(header(hash, encoding)), &newest_first, "evt_x", at, BODY)
    };
    assert_eq!(
        advanced(Sha256, Hex),
        "t=1700000000,v1=8aec6a1b0a2fc53ce02fe0ef170280f507aaa543886149e2796f45e26328b92a\
         ,v1=959a907d7c566ad1db3c7cb9acaa231d35f3f5b2a99dea8189f0b06daa27e6a6"
    );
    assert_eq!(
        advanced(Sha256, Base64),
        "t=1700000000,v1=iuxqGwovxTzgL+DvFwKA9QeqpUOIYUnieW9F4mMouSo=\
         ,v1=lZqQfXxWatHbPHy5rKojHTXz9bKpneqBifCwbaon5qY="
    );
    assert!(advanced(Sha512, Hex).contains("v1=d6448e22119282a25b423feb248c2cc44cc9441f555773d0"));
}

#[test]
fn an_expired_secret_signs_no_more() {
    for settings in [
        SignatureSettings::Standard,
        SignatureSettings::Advanced(header(HashFunction::Sha256, Encoding::Hex)),
        SignatureSettings::Simple(header(HashFunction::Sha256, Encoding::Hex)),
    ] {
        let one = sign(&settings, &[live(A, None), live(B, Some(AT.as_millis()))], "evt_x", AT, b"");
        assert_eq!(one, sign(&settings, &[live(A, None)], "evt_x", AT, b""));
    }
}

#[test]
fn secrets_fit_their_scheme() {
    let convoy = SignatureSettings::Advanced(header(HashFunction::Sha256, Encoding::Hex));
    for (settings, kind, fits) in [
        (&STANDARD_SCHEME, SecretKind::Hmac, true),
        (&STANDARD_SCHEME, SecretKind::Ed25519, true),
        (&STANDARD_SCHEME, SecretKind::Text, false),
        (&convoy, SecretKind::Hmac, true),
        (&convoy, SecretKind::Ed25519, false),
        (&convoy, SecretKind::Text, true),
    ] {
        assert_eq!(settings.takes(kind).is_ok(), fits, "{settings:?} and {kind:?}");
    }
}
