//! Secrets of endpoints are found nowhere: not in logs at their finest, not in the database, not in metrics, Watch,
//! replies or errors. And a sealed value opens only where it was put.

use hawser_client::pb;
use hawser_client::pb::authentication::Method;
use rcgen::KeyPair;
use serde_json::json;

use crate::oauth2::{endpoint, oauth2, shared};
use crate::support::failing::next_attempt;
use crate::support::leaks::letters;
use crate::support::pki::Authority;
use crate::support::sql::Session;
use crate::support::token_server::{ClientKey, TokenServer};
use crate::support::world::{next, quick_retries};
use crate::support::{Database, Receiver, Reply, Server, World, on_both, web};

on_both!(secrets_are_found_nowhere, a_sealed_value_opens_only_in_its_row);

async fn secrets_are_found_nowhere(database: Database) {
    let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--log", "trace"];
    let mut world =
        World::on(Server::start_with(database, &arguments).await, pb::PausedPolicy::Discard).await;
    let mut watch = world.watch().await;
    let tokens = TokenServer::granting(json!(3600)).await;
    let key = ClientKey::new("shown");
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let pair = KeyPair::generate().expect("a key");
    let own = clients.issue("us", &pair, |_| {});
    // A line of its PEM says as much as the whole.
    let pem_line = own.key.lines().nth(1).expect("a line").to_owned();
    let acceptor = servers.server(Some(&clients));
    let receiver = Receiver::tls(acceptor, |_, before| Reply::status([500, 204][before % 2])).await;
    let assertion = pb::o_auth2::Client::ClientAssertion(pb::ClientAssertion {
        private_jwk: key.jwk.to_string(),
        ..Default::default()
    });
    let api_key =
        pb::ApiKeyAuth { header_name: "x-api-key".to_owned(), header_value: "canary-api-key".to_owned() };
    let basic = pb::BasicAuth { username: "shown".to_owned(), password: "canary-password".to_owned() };
    let mut replies = Vec::new();
    for method in [
        Method::ApiKey(api_key),
        Method::BasicAuth(basic),
        Method::Oauth2(oauth2(tokens.url(), shared("canary-client-secret", false))),
        Method::Oauth2(oauth2(tokens.url(), assertion)),
    ] {
        let wanted = pb::Endpoint {
            authentication: Some(pb::Authentication { method: Some(method) }),
            mtls_client_cert: Some(pb::MtlsClientCert {
                certificate_chain: own.chain.clone(),
                private_key: own.key.clone(),
                ..Default::default()
            }),
            ca_certificate: servers.pem(),
            retry_policy: Some(quick_retries(3)),
            url: receiver.url("/"),
            ..Default::default()
        };
        let (made, _) = world.create(wanted, &["*"]).await;
        let event = world.publish_to(&made, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        assert_eq!(delivery.status(), pb::DeliveryStatus::Success);
        replies.push(format!("{made:?} {:?}", world.attempts_of(&delivery.id).await));
        let bad = pb::Endpoint { id: made.id.clone(), name: "canary".repeat(100), ..made };
        let request = pb::UpdateEndpointRequest { endpoint: Some(bad), ..Default::default() };
        let refused = world.client.endpoints().update_endpoint(request).await.expect_err("too long");
        replies.push(format!("{refused:?}"));
    }
    let listed = world.client.endpoints().list_endpoints(pb::ListEndpointsRequest::default()).await;
    replies.push(format!("{:?}", listed.expect("listed").into_inner()));
    // Until the last delivery's end: its second attempt and its success.
    let mut ends = 0;
    while ends < 4 {
        let message = next(&mut watch).await;
        if let Some(pb::watch_response::Change::DeliveryChange(change)) = &message.change {
            ends += usize::from(change.delivery.as_ref().is_some_and(|one| one.end_time.is_some()));
        }
        replies.push(format!("{message:?}"));
    }
    let (_, metrics) = web::get(world.server.admin(), "/metrics").await;
    let stored = stored(&world).await;
    world.server.terminate().await;
    let log = world.server.log();
    assert!(log.contains("TRACE"), "it logged all it could");

    let secrets = [
        "canary-api-key",
        "canary-password",
        "c2hvd246Y2FuYXJ5LXBhc3N3b3Jk",
        "canary-client-secret",
        key.jwk["d"].as_str().expect("d"),
        &pem_line,
        "token-0",
        "token-1",
    ];
    for secret in secrets {
        let places = [("log", &log), ("metrics", &metrics), ("database", &stored)];
        for (place, text) in places.into_iter().chain(replies.iter().map(|reply| ("reply", reply))) {
            let at = text.find(secret).map(|at| text[..at].chars().rev().take(300).collect::<String>());
            let at = at.map(|before| before.chars().rev().collect::<String>());
            assert_eq!(at, None, "{secret} is in the {place}");
        }
    }
}

/// All that the database holds, a letter for each byte, with what is hexadecimal there as it is too.
pub async fn stored(world: &World) -> String {
    match world.server.sql().await {
        Session::Sqlite(_) => {
            let mut text = String::new();
            for entry in std::fs::read_dir(world.server.data()).expect("a folder") {
                let path = entry.expect("an entry").path();
                let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                if name.starts_with("hawser.db") {
                    text.push_str(&letters(&std::fs::read(&path).expect("a file")));
                }
            }
            assert!(text.contains("SQLite format"));
            text
        }
        Session::Postgres(mut session) => {
            let tables: Vec<String> = sqlx::query_scalar(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
            )
            .fetch_all(&mut session)
            .await
            .expect("tables");
            let mut text = String::new();
            for table in tables {
                let rows = format!(
                    "SELECT string_agg(encode(convert_to(t::text, 'UTF8'), 'escape'), ' ') FROM {table} t"
                );
                let rows: Option<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(rows))
                    .fetch_one(&mut session)
                    .await
                    .expect("rows");
                text.push_str(&rows.unwrap_or_default());
            }
            text.push_str(&dump(world).await);
            letters(text.as_bytes()) + &hex_runs(&text)
        }
    }
}

/// What an operator's backup holds.
async fn dump(world: &World) -> String {
    let url = world.server.database().url().expect("PostgreSQL");
    let ran = tokio::process::Command::new("pg_dump").args(["--dbname", url]).output().await;
    let ran = ran.expect("pg_dump (postgresql-client) exists");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(text.contains("COPY public.endpoints"));
    text
}

/// What `\x…` stands for, wherever it is.
fn hex_runs(text: &str) -> String {
    let mut found = String::new();
    for part in text.split("\\x").skip(1) {
        let digits: Vec<u8> = part.bytes().take_while(u8::is_ascii_hexdigit).collect();
        let bytes = digits
            .chunks_exact(2)
            .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).ok());
        found.push_str(&letters(&bytes.collect::<Vec<_>>()));
        found.push(' ');
    }
    found
}

async fn a_sealed_value_opens_only_in_its_row(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let tokens = TokenServer::granting(json!(3600)).await;
    let one = |uid: &str, secret: &str| pb::Endpoint {
        uid: uid.to_owned(),
        ..endpoint(receiver.url("/"), oauth2(tokens.url(), shared(secret, false)))
    };
    let (a, _) = world.create(one("a", "of-a"), &["*"]).await;
    let (b, _) = world.create(one("b", "of-b"), &["*"]).await;
    world.server.terminate().await;
    let mut session = world.server.sql().await;
    session
        .run(
            "UPDATE endpoints SET authentication_sealed = \
             (SELECT o.authentication_sealed FROM endpoints o WHERE o.uid = 'a') WHERE uid = 'b'",
        )
        .await;
    drop(session);
    world.restart().await;
    let get = |id: &str| pb::GetEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    world.client.endpoints().get_endpoint(get(&a.id)).await.expect("where it was put");
    let moved = world.client.endpoints().get_endpoint(get(&b.id)).await.expect("shown without it");
    let moved = moved.into_inner().endpoint.expect("an endpoint");
    assert_eq!((moved.unreadable_fields, moved.authentication), (vec!["authentication".to_owned()], None));
    let mut watch = world.watch().await;
    world.publish_to(&b, b"{}").await;
    let attempt = next_attempt(&mut watch, &b.id).await;
    assert_eq!(attempt.error_class(), pb::ErrorClass::Cancelled);
    assert!(receiver.seen().is_empty() && tokens.requests() == 0, "nothing is sent with what was moved");
    world.publish_to(&a, b"{}").await;
    assert_eq!(receiver.wait_for_count(1).await[0].header("authorization"), "Bearer token-0");
}
