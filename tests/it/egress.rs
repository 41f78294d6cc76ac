//! Nothing is connected to that must not be: every way to make the server dial, against listeners on every forbidden
//! address, in a network namespace that this test makes. A server that dialled one would reach it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hawser_client::{field_violations, pb, reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tonic::{Code, Status};

use crate::egress_table::{LISTENED, OTHERS, PUBLIC, URLS};
use crate::oauth2;
use crate::support::names::NameServer;
use crate::support::told::{all_sent, set_webhook, update_project};
use crate::support::world::quick_retries;
use crate::support::{Database, Server, World, in_time};

const PORT: u16 = 8080;
/// All that a ping tells.
pub const UNREACHABLE: &str = "HEAD host cannot be resolved, or is not allowed after";

#[tokio::test]
async fn nothing_forbidden_is_reached() {
    let own = std::env::current_exe().expect("this program");
    let ran = Command::new("unshare")
        .args(["--map-root-user", "--net"])
        .arg(own)
        .args(["--ignored", "--exact", "egress::inside_the_namespace", "--nocapture"])
        .kill_on_drop(true)
        .output()
        .await
        .expect("unshare (util-linux) exists");
    let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n");
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

/// Run by the test above, in a namespace of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nothing_forbidden_is_reached runs it in its namespace"]
async fn inside_the_namespace() {
    in_time(inside()).await;
}

async fn inside() {
    set_up().await;
    let trap = Trap::start().await;
    for address in LISTENED.iter().chain(&PUBLIC) {
        // The kernel takes a moment until a new address is one that can be reached.
        while TcpStream::connect((ip(address), PORT)).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
    trap.wait_for(LISTENED.len() + PUBLIC.len()).await;
    trap.caught.lock().expect("unpoisoned").clear();

    let forbidden: Vec<&str> = LISTENED.into_iter().chain(OTHERS).collect();
    let names = NameServer::start(names(&forbidden)).await;
    let name_server = names.address.to_string();
    let arguments = ["--allow-http", "--nameserver", &name_server, "--alert-attempts", "1"];
    // On every address, the public ones among them.
    let listening = ["--admin-listen", "0.0.0.0:0", "--portal-listen", "[::]:0"];
    let server = Server::start_pinging(Database::sqlite(), &[&arguments[..], &listening].concat()).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;

    urls_are_refused(&world, &forbidden).await;
    let owners = names_are_not_dialled(&world, &forbidden).await;
    deliveries_are_blocked(&world, owners).await;
    own_ports_are_blocked(&world).await;
    alerts_are_blocked(&world, forbidden.len()).await;
    assert!(trap.caught().is_empty(), "{:?}", trap.caught());

    // What is allowed is reached, so the silence above means something.
    raise_alerts(&world, format!("http://public0.example.com:{PORT}/alert"), String::new()).await;
    trap.wait_for(1).await;
    assert_eq!(trap.caught()[0].ip(), ip(PUBLIC[0]));
    all_sent(&world).await;
    trap.caught.lock().expect("unpoisoned").clear();
    for (number, address) in PUBLIC.iter().enumerate() {
        let url = format!("http://public{number}.example.com:{PORT}/redirect");
        create(&world, url, None, false).await.expect("a redirect was answered, and a POST accepted");
        assert!(trap.caught().iter().all(|caught| caught.ip() == ip(address)), "{:?}", trap.caught());
        assert!(!trap.caught().is_empty());
        trap.caught.lock().expect("unpoisoned").clear();
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

/// On this machine's public addresses.
async fn own_ports_are_blocked(world: &World) {
    let port = |place: &str| place.parse::<SocketAddr>().expect(place).port();
    let (admin, portal) = (port(world.server.admin()), port(world.server.portal()));
    let mut made = Vec::new();
    for place in [(PUBLIC[0], admin), (PUBLIC[0], portal), (PUBLIC[1], portal)] {
        let place = SocketAddr::new(ip(place.0), place.1);
        TcpStream::connect(place).await.expect("others reach it");
        let url = format!("http://{place}/metrics");
        let status = create(world, url.clone(), None, false).await.expect_err("pinged");
        assert!(status.message().contains(UNREACHABLE), "{url}: {status}");
        let endpoint = create(world, url, None, true).await.expect("skipped");
        made.push((endpoint, pb::ErrorClass::BlockedAddress));
    }
    deliveries_are_blocked(world, made).await;
}

/// Gives the namespace every address.
async fn set_up() {
    let run = async |arguments: &[&str]| {
        // Where it is for those who are not root.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let ran = Command::new("ip")
            .env("PATH", path)
            .args(arguments)
            .output()
            .await
            .expect("ip (iproute2) exists");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "ip {arguments:?}: {said}");
    };
    run(&["link", "set", "lo", "up"]).await;
    for address in LISTENED.iter().chain(&PUBLIC) {
        match address.parse().expect("an address") {
            // They are there.
            IpAddr::V4(v4) if v4.is_loopback() || v4.is_unspecified() => {}
            IpAddr::V6(v6) if v6.is_loopback() => {}
            IpAddr::V4(v4) => run(&["addr", "add", &format!("{v4}/32"), "dev", "lo"]).await,
            IpAddr::V6(v6) => run(&["-6", "addr", "add", &format!("{v6}/128"), "dev", "lo", "nodad"]).await,
        }
    }
}

/// `f…` has a forbidden address, `m…` one beside a public one.
fn names(forbidden: &[&str]) -> HashMap<String, Vec<IpAddr>> {
    let mut table = HashMap::new();
    for (number, address) in forbidden.iter().enumerate() {
        table.insert(format!("f{number}.example.com"), vec![ip(address)]);
        table.insert(format!("m{number}.example.com"), vec![ip(PUBLIC[0]), ip(PUBLIC[1]), ip(address)]);
    }
    for (number, address) in PUBLIC.iter().enumerate() {
        table.insert(format!("public{number}.example.com"), vec![ip(address)]);
    }
    table
}

pub async fn create(
    world: &World,
    url: String,
    token_url: Option<String>,
    skip_ping: bool,
) -> Result<pb::Endpoint, Status> {
    let authentication = token_url.map(|token_url| {
        let oauth2 = oauth2::oauth2(token_url, oauth2::shared("secret", false));
        pb::Authentication { method: Some(pb::authentication::Method::Oauth2(oauth2)) }
    });
    let endpoint =
        pb::Endpoint { url, authentication, retry_policy: Some(quick_retries(1)), ..Default::default() };
    let request = pb::CreateEndpointRequest {
        project_id: world.project.clone(),
        endpoint: Some(endpoint),
        skip_ping,
        ..Default::default()
    };
    let reply = world.operator.endpoints().create_endpoint(request).await?.into_inner();
    Ok(reply.endpoint.expect("an endpoint"))
}

/// Creates an endpoint, which raises alerts to these URLs.
async fn raise_alerts(world: &World, slack: String, teams: String) {
    let endpoint = pb::Endpoint {
        url: format!("http://public0.example.com:{PORT}/"),
        alerts: Some(alerts(slack, teams)),
        ..Default::default()
    };
    let request = pb::CreateEndpointRequest {
        project_id: world.project.clone(),
        endpoint: Some(endpoint),
        skip_ping: true,
        ..Default::default()
    };
    world.operator.endpoints().create_endpoint(request).await.expect("created");
}

fn alerts(slack_webhook_url: String, teams_webhook_url: String) -> pb::Alerts {
    pb::Alerts { slack_webhook_url, teams_webhook_url, on: vec!["*".to_owned()], ..Default::default() }
}

/// By every channel that dials a URL.
async fn alerts_are_blocked(world: &World, forbidden: usize) {
    for number in 0..forbidden {
        let [one, mixed] = ["f", "m"].map(|kind| format!("http://{kind}{number}.example.com:{PORT}/alert"));
        set_webhook(world, [&one, &mixed][number % 2], &[]).await;
        raise_alerts(world, one, mixed).await;
    }
    let made = all_sent(world).await;
    assert_eq!(made, 3 * forbidden as i64);
    let mut session = world.server.sql().await;
    // 3 is failed.
    let blocked =
        "SELECT COUNT(*) FROM alerts WHERE status = 3 AND last_error = 'target address not allowed'";
    assert_eq!(session.numbers(blocked).await, [made]);
    update_project(world, pb::Project::default(), &["operational_webhook"]).await;
}

/// As the URL of an endpoint, of a token server, and of alerts.
async fn urls_are_refused(world: &World, forbidden: &[&str]) {
    let literals = forbidden.iter().map(|address| format!("http://{}/", SocketAddr::new(ip(address), PORT)));
    for url in URLS.iter().map(|url| (*url).to_owned()).chain(literals) {
        for (result, field) in [
            (create(world, url.clone(), None, false).await, "endpoint.url"),
            (
                create(world, "https://example.com/".to_owned(), Some(url.clone()), false).await,
                "endpoint.authentication.oauth2.token_url",
            ),
        ] {
            let Err(status) = result else { panic!("{url:?} was accepted as {field}") };
            assert_eq!(status.code(), Code::InvalidArgument, "{url:?}: {status}");
            assert_eq!(field_violations(&status)[0].field, field, "{url:?}: {status}");
        }
        let webhook = pb::OperationalWebhook { url: url.clone(), on: Vec::new() };
        for (project, field) in [
            (
                pb::Project { alerts: Some(alerts(url.clone(), String::new())), ..Default::default() },
                "project.alerts.slack_webhook_url",
            ),
            (
                pb::Project { alerts: Some(alerts(String::new(), url.clone())), ..Default::default() },
                "project.alerts.teams_webhook_url",
            ),
            (
                pb::Project { operational_webhook: Some(webhook), ..Default::default() },
                "project.operational_webhook.url",
            ),
        ] {
            let project = pb::Project { id: world.project.clone(), ..project };
            let request = pb::UpdateProjectRequest { project: Some(project), ..Default::default() };
            let Err(status) = world.operator.projects().update_project(request).await else {
                panic!("{url:?} was accepted as {field}")
            };
            assert_eq!(status.code(), Code::InvalidArgument, "{url:?}: {status}");
            assert_eq!(field_violations(&status)[0].field, field, "{url:?}: {status}");
        }
    }
}

/// By pings and token tests; returns endpoints to deliver to, and how their attempts are to fail.
async fn names_are_not_dialled(world: &World, forbidden: &[&str]) -> Vec<(pb::Endpoint, pb::ErrorClass)> {
    let mut made = Vec::new();
    for number in 0..forbidden.len() {
        for host in [format!("f{number}.example.com"), format!("m{number}.example.com")] {
            let url = format!("http://{host}:{PORT}/");
            let status = create(world, url.clone(), None, false).await.expect_err("pinged");
            assert_eq!(reason(&status).as_deref(), Some("PING_FAILED"), "{status}");
            assert!(status.message().contains(UNREACHABLE), "{host}: {status}");

            let public = format!("http://public0.example.com:{PORT}/");
            let status = create(world, public.clone(), Some(url.clone()), false).await.expect_err("no token");
            assert!(status.message().contains("TOKEN failed (AUTH)"), "{host}: {status}");
            let subject = oauth2::oauth2(url.clone(), oauth2::shared("secret", false));
            let request = pb::TestOAuth2Request {
                project_id: world.project.clone(),
                subject: Some(pb::test_o_auth2_request::Subject::Oauth2(subject)),
            };
            let test = world.operator.endpoints().test_o_auth2(request).await.expect("tested").into_inner();
            assert_eq!((test.granted, test.error_class()), (false, pb::ErrorClass::Dns), "{host}: {test:?}");

            let endpoint = create(world, url.clone(), None, true).await.expect("skipped");
            made.push((endpoint, pb::ErrorClass::BlockedAddress));
            let endpoint = create(world, public, Some(url), true).await.expect("skipped");
            made.push((endpoint, pb::ErrorClass::Auth));
        }
    }
    made
}

/// Publishes to all; these are to fail so.
pub async fn deliveries_are_blocked(world: &World, made: Vec<(pb::Endpoint, pb::ErrorClass)>) {
    let target = pb::publish_event_request::Target::Broadcast(pb::Broadcast {});
    let event = world.publish(target, b"{}").await.event_id;
    let classes: HashMap<&str, pb::ErrorClass> =
        made.iter().map(|(endpoint, class)| (endpoint.id.as_str(), *class)).collect();
    for (endpoint, _) in &made {
        let request = pb::ListDeliveriesRequest {
            event_id: event.clone(),
            endpoint_id: endpoint.id.clone(),
            ..Default::default()
        };
        let delivery = loop {
            let listed = world.client.deliveries().list_deliveries(request.clone()).await.expect("listed");
            let delivery = listed.into_inner().deliveries.pop().expect("one");
            if delivery.end_time.is_some() {
                break delivery;
            }
            // Fast enough, and no matter how fast.
            crate::support::pass_time(std::time::Duration::from_millis(20)).await;
        };
        let attempts = world.attempts_of(&delivery.id).await;
        assert_eq!(attempts.len(), 1);
        assert_eq!(attempts[0].error_class(), classes[endpoint.id.as_str()], "{endpoint:?} {attempts:?}");
        assert_eq!(attempts[0].peer_address, "", "{attempts:?}");
    }
}

/// Listens on every address and notes which of them is connected to.
struct Trap {
    caught: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Trap {
    async fn start() -> Self {
        let caught = Arc::<Mutex<Vec<SocketAddr>>>::default();
        // Of both families.
        let listener = TcpListener::bind(SocketAddr::new(ip("::"), PORT)).await.expect("a free port");
        tokio::spawn(Self::accept(listener, caught.clone()));
        Self { caught }
    }

    async fn accept(listener: TcpListener, caught: Arc<Mutex<Vec<SocketAddr>>>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let at = stream.local_addr().expect("connected");
            caught.lock().expect("unpoisoned").push(SocketAddr::new(at.ip().to_canonical(), at.port()));
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or_default();
                let reply: &[u8] = if request[..read].starts_with(b"POST") {
                    b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"
                } else {
                    b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://169.254.169.254:8080/\r\n\
                      content-length: 0\r\nconnection: close\r\n\r\n"
                };
                let _gone = stream.write_all(reply).await;
            });
        }
    }

    fn caught(&self) -> Vec<SocketAddr> {
        self.caught.lock().expect("unpoisoned").clone()
    }

    async fn wait_for(&self, count: usize) {
        while self.caught().len() < count {
            tokio::task::yield_now().await;
        }
    }
}
