//! What something bad costs the others: how healthy endpoints, their publishers and a reader of Watch fare alone, and
//! again beside it.

use std::time::Duration;

use anyhow::{bail, ensure};
use hawser_client::{Client, pb, reason};
use tokio::task::JoinSet;

use crate::load;
use crate::receiver::Receiver;
use crate::rows::Bench;
use crate::told::{self, Told};

/// What the neighbour row puts on.
#[derive(clap::Args)]
pub struct Neighbour {
    /// What is bad
    #[arg(long, value_enum, default_value_t = Trouble::Silent)]
    trouble: Trouble,
    /// Healthy endpoints, each with an owner of its own
    #[arg(long, default_value_t = 99)]
    healthy: u32,
    /// Deliveries that a silent endpoint has pending
    #[arg(long, default_value_t = 10_000)]
    pending: u32,
    /// Watch streams that stop reading
    #[arg(long, default_value_t = 100)]
    streams: usize,
    /// Events a second to the healthy ones in turn
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// For how long, each time
    #[arg(long, default_value_t = 15)]
    seconds: u32,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Trouble {
    /// An endpoint that takes requests and never answers, with much pending
    Silent,
    /// An endpoint that refuses connections, to which events go all the while
    Unreachable,
    /// Watch streams of the whole project, each on its connection, whose clients read nothing
    Stalled,
}

/// Events a second to the endpoint that is not reached.
const TO_UNREACHABLE: u32 = 20;
/// How long one of the bad streams may stay quiet when it is read at last.
const READ: Duration = Duration::from_secs(5);
const BAD: &str = "bad";

/// Milliseconds at the middle and at 99 of 100: from a publish to its request's arrival, to its answer, and to a
/// watcher's being told.
struct Spread {
    arrival: [f64; 2],
    answer: [f64; 2],
    watcher: [f64; 2],
}

impl Neighbour {
    /// p99 with and without what is bad, and what it did.
    pub async fn run(&self, bench: &Bench) -> anyhow::Result<String> {
        let Bench { receiver, client, .. } = bench;
        let owners: Vec<String> = (0..self.healthy).map(|number| format!("owner-{number}")).collect();
        for (number, owner) in (0..).zip(&owners) {
            let secret = load::endpoint(client, receiver.url(number), owner).await?;
            receiver.expect(number, &secret)?;
            load::publish(client, owner).await?;
        }
        receiver.wait_for(u64::from(self.healthy)).await?;
        let told = Told::new();
        let reader = tokio::spawn(told.follow(client, pb::WatchRequest::default()).await?);
        let alone = self.spread(bench, &owners, &told).await?;
        let (beside, what) = match self.trouble {
            Trouble::Silent => {
                load::endpoint(client, receiver.silent_url(1_000_000), BAD).await?;
                load::publish_all(client, BAD, self.pending, 32).await?;
                let beside = self.spread(bench, &owners, &told).await?;
                (beside, format!("a dead endpoint with {} pending", self.pending))
            }
            Trouble::Unreachable => {
                let (url, _socket) = Receiver::unreachable()?;
                let endpoint = load::created(client, url, BAD).await?.endpoint.unwrap_or_default();
                let bad = [BAD.to_owned()];
                let (beside, sent) = tokio::try_join!(
                    self.spread(bench, &owners, &told),
                    load::publish_at(client, &bad, TO_UNREACHABLE, self.seconds)
                )?;
                rests(client, endpoint.id).await?;
                (beside, format!("an unreachable endpoint that got {} events, its breaker open", sent.len()))
            }
            Trouble::Stalled => {
                let stalled = self.stalled(bench).await?;
                let beside = self.spread(bench, &owners, &told).await?;
                let cut = cut(stalled).await?;
                (beside, format!("{} Watch streams that are not read, {cut} of them cut", self.streams))
            }
        };
        reader.abort();
        Ok(format!(
            "beside {what}, {} healthy at {}/s for {} s | {} | {} | {}",
            self.healthy,
            self.rate,
            self.seconds,
            compared("arrival", beside.arrival, alone.arrival),
            compared("answer", beside.answer, alone.answer),
            compared("watcher", beside.watcher, alone.watcher),
        ))
    }

    async fn spread(&self, bench: &Bench, owners: &[String], told: &Told) -> anyhow::Result<Spread> {
        let Bench { receiver, client, .. } = bench;
        receiver.reset();
        let sent = load::publish_at(client, owners, self.rate, self.seconds).await?;
        receiver.wait_for(sent.len() as u64).await?;
        let mut answers: Vec<Duration> = sent.iter().map(|(_, _, took)| *took).collect();
        answers.sort_unstable();
        let sent: Vec<_> = sent.into_iter().map(|(event, began, _)| (event, began)).collect();
        let delays = told.delays(&sent).await;
        ensure!(delays.len() == sent.len(), "the watcher was told of {} of {}", delays.len(), sent.len());
        let both = |sorted: &[Duration]| [0.5, 0.99].map(|part| told::at(sorted, part));
        Ok(Spread {
            arrival: receiver.latency_ms([0.5, 0.99]),
            answer: both(&answers),
            watcher: both(&delays),
        })
    }

    /// Opens the streams that nobody reads.
    async fn stalled(&self, bench: &Bench) -> anyhow::Result<Vec<tonic::Streaming<pb::WatchResponse>>> {
        let address = format!("http://{}", bench.server.address());
        let mut streams = Vec::with_capacity(self.streams);
        for _ in 0..self.streams {
            let client = Client::connect(address.clone(), bench.key.clone()).await?;
            streams.push(client.watches().watch(pb::WatchRequest::default()).await?.into_inner());
        }
        Ok(streams)
    }
}

/// Fails unless the endpoint's breaker rests and it is still active.
async fn rests(client: &Client, endpoint_id: String) -> anyhow::Result<()> {
    let request = pb::GetEndpointRequest { endpoint_id, ..Default::default() };
    let endpoint = client.endpoints().get_endpoint(request).await?.into_inner().endpoint.unwrap_or_default();
    let circuit = endpoint.circuit.unwrap_or_default().state();
    if circuit == pb::CircuitState::Closed || endpoint.status() != pb::EndpointStatus::Active {
        bail!("the unreachable endpoint is {:?}, its breaker {circuit:?}", endpoint.status());
    }
    Ok(())
}

/// How many of these end, when they are read at last, because they were not.
async fn cut(streams: Vec<tonic::Streaming<pb::WatchResponse>>) -> anyhow::Result<usize> {
    let mut reading = JoinSet::new();
    for mut stream in streams {
        reading.spawn(async move {
            loop {
                match tokio::time::timeout(READ, stream.message()).await {
                    Ok(Ok(Some(_))) => {}
                    Ok(Err(status)) => return reason(&status).as_deref() == Some("WATCH_TOO_SLOW"),
                    Ok(Ok(None)) | Err(_) => return false,
                }
            }
        });
    }
    Ok(reading.join_all().await.into_iter().filter(|cut| *cut).count())
}

fn compared(what: &str, [p50, p99]: [f64; 2], [p50_alone, p99_alone]: [f64; 2]) -> String {
    let bar = (1.2 * p99_alone + 20.0).min(40.0);
    format!(
        "{what} p99 {p99:.2} ms, alone {p99_alone:.2} ms (bar {bar:.2} ms), p50 {p50:.2} ms, alone {p50_alone:.2} ms"
    )
}
