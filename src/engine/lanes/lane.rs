//! One lane: an endpoint's work in memory, and how much of it may be in flight.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{LaneLimits, LaneRule};
use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::store::ClaimedDelivery;

pub struct Lane {
    fresh: VecDeque<ClaimedDelivery>,
    retries: VecDeque<ClaimedDelivery>,
    /// Whether the next one comes from the retries, where both wait.
    retry_next: bool,
    pub reserved: usize,
    pub in_flight: usize,
    pub cap: usize,
    /// The endpoint's own cap; 0 where it follows the endpoint.
    fixed: u16,
    /// Successes in a row since the cap last changed.
    successes: usize,
    /// Its place, while it has one: which ring, and the ticket it was given there.
    pub place: Option<(Ring, u64)>,
    pub standing: Standing,
    /// It had work since the last sweep.
    pub used: bool,
    /// Older work of this endpoint lies in the table, so newer work must not overtake it. Grows with every
    /// spill, so that a look at the table clears only the spills it has seen.
    pub spilled: Option<u64>,
    spills: u64,
    /// Where the endpoint has a rate limit.
    paced: Option<Paced>,
}

/// The slots at which attempts may start.
struct Paced {
    slots: VecDeque<Instant>,
    /// How much later than its slot one may start.
    late: Duration,
}

/// The rings in which lanes wait for slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    Answering,
    Silent,
}

/// What an endpoint's last attempt says about how long the next one may hold its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// None ended yet.
    Unknown,
    /// It answered, whatever it said.
    Answers,
    /// It did not.
    Silent,
}

impl Lane {
    pub fn new(cap: usize) -> Self {
        Self {
            fresh: VecDeque::new(),
            retries: VecDeque::new(),
            retry_next: false,
            reserved: 0,
            in_flight: 0,
            cap,
            fixed: 0,
            successes: 0,
            place: None,
            standing: Standing::Unknown,
            used: true,
            spilled: None,
            spills: 0,
            paced: None,
        }
    }

    /// Takes over the endpoint's own cap and rate limit, if it has any.
    pub fn follow(&mut self, rule: LaneRule, limits: LaneLimits) {
        let fixed = rule.fixed;
        match (&mut self.paced, rule.late) {
            (Some(paced), Some(late)) => paced.late = late,
            (paced, late) => *paced = late.map(|late| Paced { slots: VecDeque::new(), late }),
        }
        if fixed > 0 {
            self.cap = usize::from(fixed).min(limits.cap_max);
        } else if self.fixed > 0 {
            self.cap = limits.cap_start;
        }
        self.fixed = fixed;
    }

    pub fn unpace(&mut self) {
        self.paced = None;
    }

    pub fn add_slots(&mut self, slots: Vec<Instant>) {
        if let Some(paced) = &mut self.paced {
            paced.slots.extend(slots);
        }
    }

    /// Deliveries that wait without a slot of their own.
    pub fn wanting(&mut self) -> usize {
        let waiting = self.waiting();
        self.paced.as_mut().map_or(0, |paced| waiting.saturating_sub(paced.in_time(Instant::now()).len()))
    }

    /// Whether an attempt may start now.
    pub fn has_turn(&mut self) -> bool {
        self.paced.as_mut().is_none_or(|paced| {
            let now = Instant::now();
            paced.in_time(now).front().is_some_and(|slot| *slot <= now)
        })
    }

    /// The first slot that is still to come.
    pub fn next_slot(&self) -> Option<Instant> {
        let now = Instant::now();
        self.paced.as_ref()?.slots.iter().find(|slot| **slot > now).copied()
    }

    /// Puts a delivery first that was not attempted after all.
    pub fn push_back_in(&mut self, job: ClaimedDelivery) {
        if job.attempts == job.budget_start {
            self.fresh.push_front(job);
        } else {
            self.retries.push_front(job);
        }
    }

    pub fn waiting(&self) -> usize {
        self.fresh.len() + self.retries.len()
    }

    /// What it holds in memory, places that are kept included.
    pub fn held(&self) -> usize {
        self.waiting() + self.reserved
    }

    pub fn is_full(&self) -> bool {
        self.held() >= 2 * self.cap
    }

    /// Whether a claim may bring it more: only when half empty, so that claims come in batches.
    pub fn is_hungry(&self) -> bool {
        self.held() <= self.cap
    }

    /// How many a claim may bring.
    pub fn room(&self) -> usize {
        if self.is_hungry() { 2 * self.cap - self.held() } else { 0 }
    }

    pub fn answers(&self) -> bool {
        self.standing == Standing::Answers
    }

    /// Nothing is known of its endpoint, and nothing under way will tell.
    pub fn is_untried(&self) -> bool {
        self.standing == Standing::Unknown && self.in_flight == 0 && self.held() == 0
    }

    pub fn spill(&mut self) {
        self.spills += 1;
        self.spilled = Some(self.spills);
    }

    pub fn push(&mut self, job: ClaimedDelivery) {
        if job.attempts == job.budget_start {
            self.fresh.push_back(job);
        } else {
            self.retries.push_back(job);
        }
    }

    /// First attempts and retries in turn, so that neither waits behind the other's backlog. Takes a slot, if it
    /// needs one.
    pub fn pop(&mut self) -> Option<ClaimedDelivery> {
        if self.waiting() == 0 || !self.has_turn() {
            return None;
        }
        let start_by = self.paced.as_mut().and_then(|paced| Some(paced.slots.pop_front()? + paced.late));
        let (first, second) = if self.retry_next {
            (&mut self.retries, &mut self.fresh)
        } else {
            (&mut self.fresh, &mut self.retries)
        };
        self.retry_next = !self.retry_next;
        let mut job = first.pop_front().or_else(|| second.pop_front())?;
        job.start_by = start_by;
        Some(job)
    }

    pub fn drain(&mut self) -> impl Iterator<Item = ClaimedDelivery> {
        self.fresh.drain(..).chain(self.retries.drain(..))
    }

    /// What waits while no slot is to come; a breaker's probe stays.
    pub fn drain_slotless(&mut self) -> Vec<ClaimedDelivery> {
        let has_slots = self.paced.as_mut().is_none_or(|paced| !paced.in_time(Instant::now()).is_empty());
        if has_slots {
            return Vec::new();
        }
        let (probes, others): (Vec<_>, Vec<_>) = self.drain().partition(|job| job.probe.is_some());
        for probe in probes {
            self.push(probe);
        }
        others
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.held() == 0 && self.spilled.is_none()
    }

    /// Lets go of the memory of past work.
    pub fn rest(&mut self) {
        self.fresh.shrink_to_fit();
        self.retries.shrink_to_fit();
    }

    /// Lets cap and standing follow the endpoint.
    pub fn adapt(&mut self, outcome: &AttemptOutcome, limits: LaneLimits) {
        let class = outcome.error.as_ref().map(|(class, _)| *class);
        if class == Some(ErrorClass::Cancelled) {
            // Nothing was sent, so nothing was learned.
            return;
        }
        self.standing = match class {
            None | Some(ErrorClass::HttpStatus) => Standing::Answers,
            Some(_) => Standing::Silent,
        };
        if self.fixed > 0 {
            return;
        }
        if matches!(class, Some(ErrorClass::Timeout | ErrorClass::Reset | ErrorClass::Connect)) {
            self.cap = (self.cap / 2).max(limits.cap_min);
            self.successes = 0;
        } else if outcome.is_success() {
            self.successes += 1;
            if self.successes >= self.cap && self.waiting() > 0 {
                self.cap = (self.cap * 2).min(limits.cap_max);
                self.successes = 0;
            }
        }
    }
}

impl Paced {
    /// The slots whose time is not over.
    fn in_time(&mut self, now: Instant) -> &VecDeque<Instant> {
        while self.slots.front().is_some_and(|slot| *slot + self.late < now) {
            self.slots.pop_front();
        }
        &self.slots
    }
}
