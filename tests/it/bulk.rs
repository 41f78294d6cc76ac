//! BulkCreateEndpoints: each row for itself, created, changed or left as it is.

use hawser_client::pb::bulk_create_endpoints_request::Message as Body;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::{self, BulkOutcome};
use hawser_client::{error_of, reason};
use tonic::Code;

use crate::support::bulk::{bulk, messages_of, outcomes, refused_fields, row};
use crate::support::world::until;
use crate::support::{Database, Receiver, Server, World, on_both};

on_both!(
    a_row_creates_changes_or_leaves_its_endpoint,
    the_key_is_the_uid_or_owner_and_url,
    bad_rows_stand_alone,
    a_dry_run_writes_nothing,
    secrets_come_with_new_endpoints_only,
    event_types_are_the_first_subscription,
    an_answered_change_is_in_force,
    a_full_project_takes_no_more,
    a_dry_run_counts_the_room,
    calls_are_held_to_their_form,
);

fn live() -> pb::BulkOptions {
    pb::BulkOptions::default()
}

/// What changes with everything that is written: the entries of the audit log, the routing versions, the records of
/// the change log, and the endpoints' etags.
async fn footprint(world: &World) -> (Vec<i64>, Vec<String>) {
    let mut sql = world.server.sql().await;
    let mut numbers = Vec::new();
    for table in ["audit_events", "changes", "endpoints", "secrets", "subscriptions"] {
        numbers.push(sql.count(table).await);
    }
    numbers.extend(sql.numbers("SELECT routing_version FROM projects ORDER BY id").await);
    let mut etags: Vec<String> = endpoints(world).await.into_iter().map(|one| one.id + &one.etag).collect();
    etags.sort_unstable();
    (numbers, etags)
}

async fn endpoints(world: &World) -> Vec<pb::Endpoint> {
    let request = pb::ListEndpointsRequest { page_size: 1000, ..Default::default() };
    world.client.endpoints().list_endpoints(request).await.expect("listed").into_inner().endpoints
}

async fn subscriptions(world: &World, endpoint: &str) -> Vec<Vec<String>> {
    let request = pb::ListSubscriptionsRequest { endpoint_id: endpoint.to_owned(), ..Default::default() };
    let listed = world.client.subscriptions().list_subscriptions(request).await.expect("listed");
    listed.into_inner().subscriptions.into_iter().map(|one| one.event_types).collect()
}

async fn a_row_creates_changes_or_leaves_its_endpoint(database: Database) {
    let world = World::new(database).await;
    let mut rows: Vec<pb::BulkRow> =
        (1..=300).map(|number| row(number, &format!("https://example.com/{number}"), "acme")).collect();
    // Everything that an endpoint can have, some of it secret.
    let full = rows[0].endpoint.as_mut().expect("an endpoint");
    full.uid = "full".to_owned();
    full.labels.insert("tier".to_owned(), "gold".to_owned());
    full.headers.push(pb::Header { name: "x-token".to_owned(), value: "canary".to_owned() });
    full.rate_limit = Some(pb::RateLimit { requests: 5, ..Default::default() });
    let basic = pb::BasicAuth { username: "u".to_owned(), password: "canary".to_owned() };
    full.authentication =
        Some(pb::Authentication { method: Some(pb::authentication::Method::BasicAuth(basic)) });
    rows[0].event_types = vec!["invoice.*".to_owned()];

    let answers = bulk(&world.client, live(), rows.clone()).await.expect("done");
    assert_eq!(outcomes(&answers), vec![BulkOutcome::Created; 300]);
    let numbers: Vec<i64> = answers.iter().map(|answer| answer.row_number).collect();
    assert_eq!(numbers, (1..=300).collect::<Vec<_>>(), "in the order of the rows");
    assert!(answers.iter().all(|answer| answer.secret.starts_with("whsec_")));
    let made = endpoints(&world).await;
    assert_eq!(made.len(), 300);
    let audit = pb::ListAuditEventsRequest { resource: answers[0].endpoint_id.clone(), ..Default::default() };
    let entries = world.client.audit().list_audit_events(audit).await.expect("listed").into_inner();
    assert_eq!(entries.audit_events.len(), 1);
    assert_eq!(entries.audit_events[0].action, "CreateEndpoint");

    let before = footprint(&world).await;
    let again = bulk(&world.client, live(), rows.clone()).await.expect("done");
    assert_eq!(outcomes(&again), vec![BulkOutcome::Unchanged; 300]);
    assert!(again.iter().all(|answer| answer.secret.is_empty()));
    assert_eq!(
        again.iter().map(|answer| &answer.endpoint_id).collect::<Vec<_>>(),
        answers.iter().map(|answer| &answer.endpoint_id).collect::<Vec<_>>()
    );
    assert_eq!(footprint(&world).await, before, "nothing was written");

    // What a row does not say stays; what a mask names is emptied.
    let mut change = row(1, "", "");
    let endpoint = change.endpoint.as_mut().expect("an endpoint");
    endpoint.uid = "full".to_owned();
    endpoint.name = "new name".to_owned();
    let mut empty = change.clone();
    let answers = bulk(&world.client, live(), vec![change]).await.expect("done");
    assert_eq!(outcomes(&answers), [BulkOutcome::Updated]);
    let find = |all: Vec<pb::Endpoint>| all.into_iter().find(|one| one.uid == "full").expect("it");
    let now = find(endpoints(&world).await);
    let was = find(made);
    assert_eq!((now.name.as_str(), &now.labels, &now.url), ("new name", &was.labels, &was.url));
    assert!(now.authentication.is_some() && now.etag != was.etag);
    empty.update_mask = Some(prost_types::FieldMask { paths: vec!["labels".to_owned()] });
    let answers = bulk(&world.client, live(), vec![empty]).await.expect("done");
    assert_eq!(outcomes(&answers), [BulkOutcome::Updated]);
    let now = find(endpoints(&world).await);
    assert!(now.labels.is_empty() && now.name == "new name");
}

async fn the_key_is_the_uid_or_owner_and_url(database: Database) {
    let world = World::new(database).await;
    let named = |number, uid: &str, url: &str| {
        let mut row = row(number, url, "acme");
        row.endpoint.as_mut().expect("an endpoint").uid = uid.to_owned();
        row
    };
    let url = "https://example.com/same";
    let first = vec![named(1, "a", url), named(2, "b", url), row(3, url, ""), row(4, url, "other")];
    let answers = bulk(&world.client, live(), first).await.expect("done");
    assert_eq!(outcomes(&answers), [BulkOutcome::Created; 4]);
    let ids: Vec<&str> = answers.iter().map(|answer| answer.endpoint_id.as_str()).collect();

    // The uid finds it whatever its URL; owner and canonical URL find the only one that has them.
    let second = vec![
        named(1, "b", "https://example.com/moved"),
        row(2, "HTTPS://EXAMPLE.com:443/same", ""),
        row(3, url, "other"),
        row(4, "https://example.com/nowhere", "other"),
    ];
    let answers = bulk(&world.client, live(), second).await.expect("done");
    let told: Vec<(BulkOutcome, &str)> =
        answers.iter().map(|answer| (answer.outcome(), answer.endpoint_id.as_str())).collect();
    assert_eq!(
        told[..3],
        [(BulkOutcome::Updated, ids[1]), (BulkOutcome::Unchanged, ids[2]), (BulkOutcome::Unchanged, ids[3]),]
    );
    assert_eq!(told[3].0, BulkOutcome::Created);
    // "a" and the moved one are back at one URL: by it, neither is meant.
    bulk(&world.client, live(), vec![named(1, "b", url)]).await.expect("done");
    let answers = bulk(&world.client, live(), vec![row(1, url, "acme")]).await.expect("done");
    assert_eq!(refused_fields(&answers[0]), ["endpoint.url"]);

    // Two rows for one endpoint would undo each other at every run.
    let twice = vec![
        named(1, "c", "https://example.com/c"),
        named(2, "c", "https://example.com/d"),
        row(3, "https://example.com/e", "x"),
        row(4, "https://example.com/e", "x"),
        row(5, "https://example.com/c", "acme"),
    ];
    let answers = bulk(&world.client, live(), twice).await.expect("done");
    use BulkOutcome::{Created, Refused};
    assert_eq!(outcomes(&answers), [Created, Refused, Created, Refused, Refused]);
    let fields: Vec<_> = [1, 3, 4].map(|at: usize| refused_fields(&answers[at])).concat();
    assert_eq!(fields, ["endpoint.uid", "endpoint.url", "endpoint.url"]);
}

async fn bad_rows_stand_alone(database: Database) {
    let world = World::new(database).await;
    let mut rows: Vec<pb::BulkRow> =
        (0..20).map(|number| row(number, &format!("https://example.com/{number}"), "acme")).collect();
    let mut expected = vec![Vec::new(); 20];
    let mut spoil = |at: usize, fields: &[&str], how: &dyn Fn(&mut pb::BulkRow)| {
        how(&mut rows[at]);
        expected[at] = fields.iter().map(|field| (*field).to_owned()).collect();
    };
    let endpoint = |row: &mut pb::BulkRow, change: &dyn Fn(&mut pb::Endpoint)| {
        change(row.endpoint.as_mut().expect("an endpoint"));
    };
    spoil(1, &["endpoint.url"], &|row| endpoint(row, &|one| one.url = "http://127.0.0.2:1x/".to_owned()));
    spoil(3, &["endpoint.url"], &|row| endpoint(row, &|one| one.url = "https://169.254.169.254/".to_owned()));
    spoil(5, &["event_types[1]"], &|row| row.event_types = vec!["a".to_owned(), "b c".to_owned()]);
    spoil(7, &["endpoint"], &|row| row.endpoint = None);
    spoil(9, &["endpoint.name", "endpoint.max_in_flight"], &|row| {
        endpoint(row, &|one| {
            one.name = "x".repeat(129);
            one.max_in_flight = -1;
        });
    });
    spoil(11, &["secret"], &|row| row.secret = "whsec_short".to_owned());
    spoil(13, &["update_mask"], &|row| {
        row.update_mask = Some(prost_types::FieldMask { paths: vec!["status".to_owned()] });
    });
    spoil(15, &["endpoint.authentication.basic_auth.username"], &|row| {
        endpoint(row, &|one| {
            let method = pb::authentication::Method::BasicAuth(pb::BasicAuth::default());
            one.authentication = Some(pb::Authentication { method: Some(method) });
        });
    });
    let answers = bulk(&world.client, live(), rows).await.expect("the call goes on");
    for (answer, expected) in answers.iter().zip(expected) {
        let number = answer.row_number;
        if expected.is_empty() {
            assert_eq!(answer.outcome(), BulkOutcome::Created, "row {number}: {answer:?}");
        } else {
            assert_eq!(answer.outcome(), BulkOutcome::Refused, "row {number}");
            let mut fields = refused_fields(answer);
            fields.sort_by_key(|field| std::cmp::Reverse(field.clone()));
            assert_eq!(fields, expected, "row {number}");
            assert!(answer.secret.is_empty() && answer.endpoint_id.is_empty());
        }
    }
    assert_eq!(endpoints(&world).await.len(), 12);
}

async fn a_dry_run_writes_nothing(database: Database) {
    let world = World::new(database).await;
    let (there, _) = world.endpoint("https://example.com/there", "acme").await;
    let before = footprint(&world).await;
    let mut change = row(2, "https://example.com/there", "acme");
    change.endpoint.as_mut().expect("an endpoint").name = "new".to_owned();
    let rows = vec![
        row(1, "https://example.com/new", "acme"),
        change,
        row(3, "https://example.com/new", "acme"),
        row(4, "nonsense", "acme"),
    ];
    let options = pb::BulkOptions { dry_run: true, ..live() };
    let answers = bulk(&world.client, options, rows).await.expect("done");
    use BulkOutcome::{Refused, WouldCreate, WouldUpdate};
    assert_eq!(outcomes(&answers), [WouldCreate, WouldUpdate, Refused, Refused]);
    assert_eq!(answers[1].endpoint_id, there.id);
    assert!(answers.iter().all(|answer| answer.secret.is_empty()));
    assert_eq!(footprint(&world).await, before);
}

async fn secrets_come_with_new_endpoints_only(database: Database) {
    let world = World::new(database).await;
    let own = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let given = |number, url: &str, secret: &str| pb::BulkRow {
        secret: secret.to_owned(),
        ..row(number, url, "acme")
    };
    let pair = pb::BulkRow {
        secret_type: pb::SecretType::Ed25519.into(),
        ..row(2, "https://example.com/2", "acme")
    };
    let rows = vec![given(1, "https://example.com/1", own), pair];
    let answers = bulk(&world.client, live(), rows.clone()).await.expect("done");
    assert_eq!(answers[0].secret, own);
    assert!(answers[1].secret.starts_with("whsk_") && answers[1].public_key.starts_with("whpk_"));

    let other = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDAAAAAAAA";
    let mut again = rows;
    again.push(given(3, "https://example.com/3", other));
    again[0].secret = other.to_owned();
    let answers = bulk(&world.client, live(), again.clone()).await.expect("done");
    use BulkOutcome::{Created, Refused, Unchanged};
    assert_eq!(outcomes(&answers), [Refused, Unchanged, Created]);
    assert_eq!(refused_fields(&answers[0]), ["secret"]);
    again[0].secret = own.to_owned();
    let answers = bulk(&world.client, live(), again.clone()).await.expect("done");
    assert_eq!(outcomes(&answers), [Unchanged; 3]);

    // A signature that the endpoint's secrets do not fit is refused, dry or not.
    let simple = pb::SignatureSettings { scheme: pb::SignatureScheme::Simple.into(), ..Default::default() };
    again[1].endpoint.as_mut().expect("an endpoint").signature = Some(simple);
    for dry_run in [true, false] {
        let options = pb::BulkOptions { dry_run, ..live() };
        let answers = bulk(&world.client, options, vec![again[1].clone()]).await.expect("done");
        let error = error_of(answers[0].error.as_ref().expect("refused"));
        assert_eq!(reason(&error).as_deref(), Some("SECRET_UNFIT"));
    }
}

async fn event_types_are_the_first_subscription(database: Database) {
    let world = World::new(database).await;
    let typed = |types: &[&str]| pb::BulkRow {
        event_types: types.iter().map(|text| (*text).to_owned()).collect(),
        ..row(1, "https://example.com/", "acme")
    };
    let answers = bulk(&world.client, live(), vec![typed(&["a.*", "b"])]).await.expect("done");
    let id = answers[0].endpoint_id.clone();
    let second =
        pb::Subscription { endpoint_id: id.clone(), event_types: vec!["z".to_owned()], ..Default::default() };
    let second = pb::CreateSubscriptionRequest { subscription: Some(second), ..Default::default() };
    world.client.subscriptions().create_subscription(second).await.expect("created");

    let mut outcomes_of = Vec::new();
    for types in [&["a.*", "b"][..], &[], &["c"]] {
        outcomes_of.extend(outcomes(&bulk(&world.client, live(), vec![typed(types)]).await.expect("done")));
    }
    assert_eq!(outcomes_of, [BulkOutcome::Unchanged, BulkOutcome::Unchanged, BulkOutcome::Updated]);
    assert_eq!(subscriptions(&world, &id).await, [["c"], ["z"]]);
}

/// Whoever publishes after the answer reaches what was made, and what was changed as it is now.
async fn an_answered_change_is_in_force(database: Database) {
    let world = World::new(database).await;
    let (old, new) = (Receiver::ok().await, Receiver::ok().await);
    let mut watch = world.watch().await;
    let mut one = row(1, &old.url("/old"), "acme");
    one.endpoint.as_mut().expect("an endpoint").uid = "one".to_owned();
    // So that the routes of before are known to the engine.
    world.publish(Target::OwnerId("acme".to_owned()), b"{}").await;
    for (receiver, path) in [(&old, "/old"), (&new, "/new")] {
        one.endpoint.as_mut().expect("an endpoint").url = receiver.url(path);
        bulk(&world.client, live(), vec![one.clone()]).await.expect("done");
        let published = world.publish(Target::OwnerId("acme".to_owned()), b"{}").await;
        assert_eq!(published.delivery_count, 1);
        until(&mut watch, &published.event_id, pb::DeliveryStatus::Success).await;
    }
    assert_eq!((old.seen().len(), new.seen().len()), (1, 1));
}

async fn a_full_project_takes_no_more(database: Database) {
    let server = Server::start_with(database, &["--endpoints-max", "3"]).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let rows: Vec<pb::BulkRow> =
        (0..5).map(|number| row(number, &format!("https://example.com/{number}"), "acme")).collect();
    use BulkOutcome::{Created, Refused, Unchanged};
    let answers = bulk(&world.client, live(), rows.clone()).await.expect("the call goes on");
    assert_eq!(outcomes(&answers), [Created, Created, Created, Refused, Refused]);
    let error = error_of(answers[3].error.as_ref().expect("refused"));
    assert_eq!((error.code(), reason(&error).as_deref()), (Code::ResourceExhausted, Some("ENDPOINTS")));
    let answers = bulk(&world.client, live(), rows).await.expect("the call goes on");
    assert_eq!(outcomes(&answers), [Unchanged, Unchanged, Unchanged, Refused, Refused]);
}

/// A dry run refuses the rows that the run after it refuses, across batches, and none for a row that is refused itself.
async fn a_dry_run_counts_the_room(database: Database) {
    let server = Server::start_with(database, &["--endpoints-max", "300"]).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let url = |number: i64| format!("https://example.com/{number}");
    let there = bulk(&world.client, live(), vec![row(1, &url(1), "acme")]).await.expect("done");
    assert_eq!(outcomes(&there), [BulkOutcome::Created]);
    let mut rows: Vec<pb::BulkRow> = (1..=303).map(|number| row(number, &url(number), "acme")).collect();
    rows[1].endpoint.as_mut().expect("an endpoint").url = "nonsense".to_owned();
    let dry = pb::BulkOptions { dry_run: true, ..live() };
    let before = footprint(&world).await;
    let planned = bulk(&world.client, dry, rows.clone()).await.expect("planned");
    assert_eq!(footprint(&world).await, before);
    let done = bulk(&world.client, live(), rows).await.expect("done");
    let refused = |answers: &[pb::BulkCreateEndpointsResponse]| -> Vec<(i64, Option<String>)> {
        let refused = answers.iter().filter(|answer| answer.outcome() == BulkOutcome::Refused);
        refused.map(|one| (one.row_number, reason(&error_of(one.error.as_ref().expect("why"))))).collect()
    };
    let numbers: Vec<i64> = refused(&done).iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [2, 302, 303]);
    assert_eq!(refused(&planned), refused(&done));
}

async fn calls_are_held_to_their_form(database: Database) {
    let world = World::new(database).await;
    let options = || Body::Options(live());
    let good = |number| Body::Row(row(number, &format!("https://example.com/{number}"), ""));
    let unknown = pb::BulkOptions { ping: 17, ..live() };
    for (messages, answered, field) in [
        (vec![good(1)], 0, "options"),
        (vec![options(), good(1), options(), good(2)], 1, "row"),
        (vec![Body::Options(unknown)], 0, "options.ping"),
    ] {
        let (answers, end) = messages_of(&world.client, messages).await;
        let status = end.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(hawser_client::field_violations(&status)[0].field, field);
        assert_eq!(answers.len(), answered, "what came before is answered");
    }
    let (answers, end) = messages_of(&world.client, vec![options()]).await;
    end.expect("a good end");
    assert!(answers.is_empty());
    let (_, end) = messages_of(&world.client, Vec::new()).await;
    end.expect("a good end");

    // Rows without an endpoint cost little.
    let many = (0..100_001).map(|_| Body::Row(pb::BulkRow::default()));
    let (answers, end) = messages_of(&world.client, std::iter::once(options()).chain(many).collect()).await;
    assert!(end.expect_err("too many").message().contains("100000"));
    assert_eq!(answers.len(), 100_000);
}
