//! The product's vocabulary and rules, pure: no transport, no database, no network.
//!
//! Glossary. A **project** is the tenant. An **endpoint** is a customer's URL. A **subscription** says which
//! event types an endpoint wants. An **event** is what a service published; a **delivery** is one event on
//! its way to one endpoint; an **attempt** is one HTTP request made for a delivery. A **change** is what
//! Watch tells about a committed transaction.

pub mod address;
pub mod alert;
pub mod attempt;
pub mod audit;
pub mod breaker;
pub mod change;
pub mod clock;
pub mod credentials;
pub mod delivery;
pub mod disable;
pub mod egress;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod form;
pub mod id;
pub mod page;
pub mod principal;
pub mod project;
pub mod rate;
pub mod retry;
pub mod rotation;
pub mod routing;
pub mod secret;
pub mod seen;
pub mod signature;
pub mod subscription;
pub mod url_rules;
