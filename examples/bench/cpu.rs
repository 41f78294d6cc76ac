//! CPU seconds of the server, the database, the driver and the receiver, from /proc.

use anyhow::Context;

use crate::server::Server;

/// CPU seconds since each process began.
pub struct Cpu {
    pub server: f64,
    pub database: f64,
    pub driver: f64,
    pub receiver: f64,
}

/// Linux's USER_HZ, the unit of /proc/PID/stat.
const TICKS: f64 = 100.0;

impl Cpu {
    pub fn now(server: &Server) -> anyhow::Result<Self> {
        let database = match server.postmaster() {
            Some(postmaster) => family(postmaster)?,
            None => 0.0,
        };
        let (own, receiver) = (of(std::process::id())?.0, of_receiver()?);
        Ok(Self { server: of(server.pid())?.0, database, driver: own - receiver, receiver })
    }

    /// As a row shows it.
    pub fn per_thousand(&self, deliveries: u64) -> String {
        let of = |seconds: f64| seconds * 1000.0 / deliveries as f64;
        format!(
            "CPU s per 1,000: server {:.3}, database {:.3}, driver {:.3}, receiver {:.3}",
            of(self.server),
            of(self.database),
            of(self.driver),
            of(self.receiver)
        )
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            server: self.server - before.server,
            database: self.database - before.database,
            driver: self.driver - before.driver,
            receiver: self.receiver - before.receiver,
        }
    }
}

/// The name of the receiver's threads, by which their time is told from the driver's.
pub const RECEIVER_THREAD: &str = "receiver";

/// CPU seconds of this process's threads that the receiver runs on. They live as long as the process.
fn of_receiver() -> anyhow::Result<f64> {
    let mut total = 0.0;
    for entry in std::fs::read_dir("/proc/self/task")? {
        let folder = entry?.path();
        // A thread may end while we look; the receiver's do not.
        let Ok(stat) = std::fs::read_to_string(folder.join("stat")) else { continue };
        if stat.contains(&format!("({RECEIVER_THREAD})")) {
            total += parse(&stat)?.0;
        }
    }
    Ok(total)
}

/// CPU seconds of a process and its parent's id.
fn of(pid: u32) -> anyhow::Result<(f64, u32)> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

fn parse(stat: &str) -> anyhow::Result<(f64, u32)> {
    // The name may hold spaces; what follows its closing bracket does not.
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).context("stat");
    let ticks = number(11)? + number(12)?;
    Ok((ticks as f64 / TICKS, u32::try_from(number(1)?)?))
}

/// Of PostgreSQL's first process, its children, and those that already ended.
fn family(postmaster: u32) -> anyhow::Result<f64> {
    let mut total = of(postmaster)?.0;
    let stat = std::fs::read_to_string(format!("/proc/{postmaster}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ended: u64 = fields[13].parse::<u64>()? + fields[14].parse::<u64>()?;
    total += ended as f64 / TICKS;
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while we look.
        if let Ok((seconds, parent)) = of(pid)
            && parent == postmaster
        {
            total += seconds;
        }
    }
    Ok(total)
}
