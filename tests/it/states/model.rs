//! What endpoints and their deliveries do, in a few lines: the tables of states and transitions, and nothing of how
//! the server does it.

use hawser_client::pb::{DeliveryStatus, EndpointStatus};

use crate::support::Answer;

/// Attempts in a budget, and failures in a row that switch an endpoint off.
pub const ATTEMPTS: i32 = 3;
pub const FAILURES: i32 = 4;

/// Where a delivery stands between two steps, when nothing is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The receiver has its request and has not answered.
    InFlight,
    /// Waits for its endpoint to be resumed.
    Held,
    Ended(DeliveryStatus),
}

#[derive(Clone, Debug)]
pub struct Delivery {
    pub endpoint: usize,
    pub place: Place,
    /// The status that is stored while it is held.
    pub held_as: DeliveryStatus,
    pub attempts: i32,
    /// Of this budget.
    made: i32,
    probe: bool,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    /// None: deleted.
    pub state: Option<EndpointStatus>,
    pub failures: i32,
}

/// What a step must show: changes on Watch, and requests at the receiver.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shows {
    /// Change types of the endpoint, with the state after them.
    pub endpoint: Vec<(usize, &'static str, EndpointStatus)>,
    /// Change types of deliveries, with their status and attempts.
    pub deliveries: Vec<(usize, &'static str, DeliveryStatus, i32)>,
    pub requests: Vec<usize>,
}

pub struct Model {
    /// The project holds what is published to paused endpoints.
    pub holds: bool,
    pub endpoints: Vec<Endpoint>,
    pub deliveries: Vec<Delivery>,
}

use DeliveryStatus::{Discarded, Failed, Retry, Scheduled, Success};
use EndpointStatus::{Active, Inactive, Paused, Pending};

impl Model {
    pub fn create(&mut self) {
        self.endpoints.push(Endpoint { state: Some(Active), failures: 0 });
    }

    pub fn of(&self, endpoint: usize, place: Place) -> Vec<usize> {
        let is =
            |id: &usize| self.deliveries[*id].endpoint == endpoint && self.deliveries[*id].place == place;
        (0..self.deliveries.len()).filter(is).collect()
    }

    pub fn publish(&mut self, endpoint: usize) -> (DeliveryStatus, Shows) {
        let (status, place) = match self.endpoints[endpoint].state.expect("not deleted") {
            Active => (Scheduled, Place::InFlight),
            Paused if self.holds => (Scheduled, Place::Held),
            _ => (Discarded, Place::Ended(Discarded)),
        };
        let delivery = Delivery { endpoint, place, held_as: Scheduled, attempts: 0, made: 0, probe: false };
        self.deliveries.push(delivery);
        let mut shows = Shows::default();
        if place == Place::InFlight {
            shows.requests.push(self.deliveries.len() - 1);
        }
        (status, shows)
    }

    pub fn pause(&mut self, endpoint: usize) -> Result<Shows, &'static str> {
        match self.endpoints[endpoint].state.ok_or("NOT_FOUND")? {
            Active => Ok(self.switch(endpoint, "PAUSED", Paused)),
            Paused => Ok(Shows::default()),
            Inactive => Err("ENDPOINT_INACTIVE"),
            _ => Err("ENDPOINT_PENDING"),
        }
    }

    pub fn resume(&mut self, endpoint: usize) -> Result<Shows, &'static str> {
        match self.endpoints[endpoint].state.ok_or("NOT_FOUND")? {
            Paused => Ok(self.switch(endpoint, "RESUMED", Active)),
            Active => Ok(Shows::default()),
            Inactive => Err("ENDPOINT_INACTIVE"),
            _ => Err("ENDPOINT_PENDING"),
        }
    }

    pub fn activate(&mut self, endpoint: usize) -> Result<Shows, &'static str> {
        match self.endpoints[endpoint].state.ok_or("NOT_FOUND")? {
            Inactive if !self.of(endpoint, Place::InFlight).is_empty() => Err("ENDPOINT_DISCARDING"),
            Paused | Inactive => Ok(self.switch(endpoint, "ACTIVATED", Active)),
            Active => Ok(Shows::default()),
            _ => Err("ENDPOINT_PENDING"),
        }
    }

    pub fn delete(&mut self, endpoint: usize) -> Result<Shows, &'static str> {
        let state = self.endpoints[endpoint].state.take().ok_or("NOT_FOUND")?;
        let mut shows = Shows { endpoint: vec![(endpoint, "DELETED", state)], ..Shows::default() };
        for held in self.of(endpoint, Place::Held) {
            shows.deliveries.push(self.end(held, "DISCARDED", Discarded));
        }
        Ok(shows)
    }

    pub fn retry(&mut self, id: usize) -> Result<Shows, &'static str> {
        let Delivery { endpoint, place, .. } = self.deliveries[id];
        if !matches!(place, Place::Ended(Failed | Discarded)) {
            return Err("DELIVERY_NOT_ENDED");
        }
        let mut shows = Shows::default();
        let probe = match self.endpoints[endpoint].state.ok_or("ENDPOINT_DELETED")? {
            Active => false,
            Paused => return Err("ENDPOINT_PAUSED"),
            Inactive if self.of(endpoint, Place::InFlight).is_empty() => {
                self.endpoints[endpoint].state = Some(Pending);
                shows.endpoint.push((endpoint, "PROBING", Pending));
                true
            }
            Inactive => return Err("ENDPOINT_DISCARDING"),
            _ => return Err("ENDPOINT_PENDING"),
        };
        let delivery = &mut self.deliveries[id];
        (delivery.place, delivery.made, delivery.probe) = (Place::InFlight, 0, probe);
        shows.deliveries.push((id, "RETRIED", Scheduled, delivery.attempts));
        shows.requests.push(id);
        Ok(shows)
    }

    /// The receiver answers a request that is in flight.
    pub fn answer(&mut self, id: usize, answer: Answer) -> Shows {
        let delivery = &mut self.deliveries[id];
        delivery.attempts += 1;
        delivery.made += 1;
        let Delivery { endpoint, made, probe, .. } = *delivery;
        let success = matches!(answer, Answer::Status(200..=299));
        let gone = answer == Answer::Status(410);
        let state = self.endpoints[endpoint].state;
        if success {
            let mut shows = Shows::default();
            shows.deliveries.push(self.end(id, "ATTEMPTED", Success));
            if state == Some(Pending) && probe {
                let told = self.switch(endpoint, "RECOVERED", Active);
                shows.endpoint.extend(told.endpoint);
            }
            self.endpoints[endpoint].failures = 0;
            return shows;
        }
        let spent = made >= ATTEMPTS || gone;
        let mut shows = Shows::default();
        match state {
            None | Some(Inactive) => shows.deliveries.push(self.end(id, "ATTEMPTED", Discarded)),
            Some(Pending) => {
                assert!(probe, "nothing but the probe is sent while PENDING");
                self.endpoints[endpoint].failures += 1;
                shows.deliveries.push(self.end(id, "ATTEMPTED", Failed));
                shows.endpoint.extend(self.switch(endpoint, "DISABLED", Inactive).endpoint);
            }
            Some(Paused) => {
                self.endpoints[endpoint].failures += 1;
                shows.deliveries.push(if spent {
                    self.end(id, "ATTEMPTED", Failed)
                } else {
                    let delivery = &mut self.deliveries[id];
                    (delivery.place, delivery.held_as) = (Place::Held, Retry);
                    (id, "ATTEMPTED", Retry, delivery.attempts)
                });
            }
            Some(_) => {
                self.endpoints[endpoint].failures += 1;
                let off = gone || self.endpoints[endpoint].failures >= FAILURES;
                shows.deliveries.push(match (spent, off) {
                    (true, _) => self.end(id, "ATTEMPTED", Failed),
                    (false, true) => self.end(id, "ATTEMPTED", Discarded),
                    (false, false) => {
                        shows.requests.push(id);
                        (id, "ATTEMPTED", Retry, self.deliveries[id].attempts)
                    }
                });
                if off {
                    shows.endpoint.extend(self.switch(endpoint, "DISABLED", Inactive).endpoint);
                }
            }
        }
        shows
    }

    /// To another state; what was held goes on where that is ACTIVE.
    fn switch(&mut self, endpoint: usize, told: &'static str, to: EndpointStatus) -> Shows {
        self.endpoints[endpoint].state = Some(to);
        let mut shows = Shows { endpoint: vec![(endpoint, told, to)], ..Shows::default() };
        if to == Active {
            self.endpoints[endpoint].failures = 0;
            shows.requests = self.of(endpoint, Place::Held);
            for id in &shows.requests {
                self.deliveries[*id].place = Place::InFlight;
            }
        }
        shows
    }

    fn end(
        &mut self,
        id: usize,
        told: &'static str,
        status: DeliveryStatus,
    ) -> (usize, &'static str, DeliveryStatus, i32) {
        self.deliveries[id].place = Place::Ended(status);
        (id, told, status, self.deliveries[id].attempts)
    }
}
