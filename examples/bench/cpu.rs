//! CPU seconds of the server, the database and this process, from /proc.

use anyhow::Context;

use crate::server::Server;

/// CPU seconds since each process began.
pub struct Cpu {
    pub server: f64,
    pub database: f64,
    pub own: f64,
}

/// Linux's USER_HZ, the unit of /proc/PID/stat.
const TICKS: f64 = 100.0;

impl Cpu {
    pub fn now(server: &Server) -> anyhow::Result<Self> {
        let database = match server.postmaster() {
            Some(postmaster) => family(postmaster)?,
            None => 0.0,
        };
        Ok(Self { server: of(server.pid())?.0, database, own: of(std::process::id())?.0 })
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            server: self.server - before.server,
            database: self.database - before.database,
            own: self.own - before.own,
        }
    }
}

/// CPU seconds of a process and its parent's id.
fn of(pid: u32) -> anyhow::Result<(f64, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
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
