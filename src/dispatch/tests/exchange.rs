//! Token requests.

use std::time::Duration;

use super::sink::{Script, Sink};
use super::{dispatcher, url};
use crate::domain::attempt::ErrorClass;
use crate::domain::credentials::{AuthMethod, Authentication, ClientProof, Credentials, OAuth2, TokenFields};
use crate::domain::secret::SecretText;

#[tokio::test]
async fn a_token_request_ends_in_the_time_it_is_given() {
    let sink = Sink::start(Script::Stall(Vec::new())).await;
    let oauth2 = OAuth2 {
        token_url: sink.url(),
        client_id: "me".to_owned(),
        scope: String::new(),
        audience: String::new(),
        client: ClientProof::SharedSecret { in_header: false },
        fields: TokenFields::default(),
    };
    let credentials = Credentials {
        version: 0,
        authentication: Some(Authentication {
            method: AuthMethod::OAuth2(Box::new(oauth2)),
            secret: SecretText::new("secret"),
        }),
        client_certificate: None,
        authorities: None,
        token_url: Some(url(&sink.url())),
    };
    let exchange = dispatcher().exchange(&credentials, Duration::from_millis(200)).await;
    let (class, detail) = exchange.result.err().expect("no answer");
    assert_eq!((class, detail.as_str()), (ErrorClass::Timeout, "no answer within 0.2 s"));
    assert!(exchange.took >= Duration::from_millis(200));
}
