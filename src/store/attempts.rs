//! Attempt rows: writing many, reading some.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sea_orm::Statement;

use super::claim::parse_headers;
use super::db::Row;
use super::deliveries::unsigned;
use super::error::Result;
use super::events::Conditions;
use super::ingest::headers_json;
use super::outcomes::{ABSENT, FinishedAttempt, small};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use super::{Reads, Store};
use crate::domain::attempt::{AttemptOutcome, ErrorClass, Timings};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Attempt;
use crate::domain::id::{AttemptId, DeliveryId, EndpointId, EventId, ProjectId};
use crate::domain::page::{Page, PageRequest};

impl Store {
    /// Oldest first, with what was captured.
    pub async fn attempts(&self, delivery: DeliveryId, page: PageRequest) -> Result<Page<Attempt>> {
        let mut conditions = Conditions::new("delivery_id", delivery.uuid().into());
        if let Some(after) = page.after {
            conditions.add("id >", after.into());
        }
        let (sql, values) = conditions.finish(&format!("SELECT {ATTEMPT} FROM attempts"), "id", page);
        let rows =
            self.reader().query_all_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        let rows = rows.iter().map(read_attempt).collect::<Result<Vec<_>>>()?;
        Ok(Page::from_rows(rows, page.size, |attempt| attempt.id.uuid()))
    }

    /// These attempts, as far as they are kept, without the bodies of their answers.
    pub async fn attempts_by_id(
        &self,
        reads: Reads,
        ids: &[AttemptId],
    ) -> Result<HashMap<AttemptId, Arc<Attempt>>> {
        let mut rows = Rows::new([("attempt_id", Kind::Uuid)]);
        for id in ids {
            rows.push([id.uuid().into()]);
        }
        let columns = ATTEMPT.replace("response_body", "NULL");
        let sql = format!("SELECT {columns} FROM v JOIN attempts ON attempts.id = v.attempt_id");
        let found = rows.query(self.reader_of(reads), &sql).await?;
        found.iter().map(|row| read_attempt(row).map(|attempt| (attempt.id, Arc::new(attempt)))).collect()
    }
}

impl Tx {
    /// Those of the attempts that have a row.
    pub(super) async fn recorded_attempts(
        &self,
        ids: impl Iterator<Item = AttemptId>,
    ) -> Result<HashSet<AttemptId>> {
        let mut rows = Rows::new([("attempt_id", Kind::Uuid)]);
        for id in ids {
            rows.push([id.uuid().into()]);
        }
        let sql = "SELECT attempts.id FROM v JOIN attempts ON attempts.id = v.attempt_id";
        let found = rows.query(self.db(), sql).await?;
        found.iter().map(|row| Ok(AttemptId::from_uuid(row.try_get_by_index(0)?))).collect()
    }

    /// Rows that are there already stay as they are.
    pub(super) fn insert_attempts(&mut self, finished: &[FinishedAttempt]) {
        let mut rows = Rows::new([
            ("id", Kind::Uuid),
            ("delivery_id", Kind::Uuid),
            ("project_id", Kind::Uuid),
            ("endpoint_id", Kind::Uuid),
            ("event_id", Kind::Uuid),
            ("number", Kind::SmallInt),
            ("started_at", Kind::BigInt),
            ("status_code", Kind::SmallInt),
            ("error_class", Kind::SmallInt),
            ("error_detail", Kind::Text),
            ("request_headers", Kind::Text),
            ("response_headers", Kind::Text),
            ("response_body", Kind::Bytes),
            ("flags", Kind::SmallInt),
            ("peer", Kind::Text),
            ("dns_us", Kind::Int),
            ("connect_us", Kind::Int),
            ("tls_us", Kind::Int),
            ("first_byte_us", Kind::Int),
            ("total_us", Kind::Int),
        ]);
        for one in finished {
            let (attempt, outcome) = (&one.attempt, &one.attempt.outcome);
            let timings = &outcome.timings;
            let (class, detail) = match &outcome.error {
                Some((class, detail)) => (class.code(), detail.clone()),
                None => (ABSENT, String::new()),
            };
            rows.push([
                attempt.id.uuid().into(),
                attempt.delivery.uuid().into(),
                attempt.project.uuid().into(),
                attempt.endpoint.uuid().into(),
                attempt.event.uuid().into(),
                small(attempt.number).into(),
                outcome.started_at.as_millis().into(),
                outcome.status.map_or(ABSENT, small).into(),
                class.into(),
                detail.into(),
                headers_json(&attempt.request_headers).into(),
                headers_json(&outcome.response_headers).into(),
                outcome.body.to_vec().into(),
                flags(attempt).into(),
                outcome.peer.map(|peer| peer.to_string()).unwrap_or_default().into(),
                stored_micros(timings.dns_us).into(),
                stored_micros(timings.connect_us).into(),
                stored_micros(timings.tls_us).into(),
                stored_micros(timings.first_byte_us).into(),
                stored_micros(Some(timings.total_us)).into(),
            ]);
        }
        let values = ":id, :delivery_id, :project_id, :endpoint_id, :event_id, :number, :started_at, \
                      NULLIF(:status_code, -1), NULLIF(:error_class, -1), NULLIF(:error_detail, ''), :request_headers, \
                      NULLIF(:response_headers, ''), :response_body, :flags, NULLIF(:peer, ''), NULLIF(:dns_us, -1), \
                      NULLIF(:connect_us, -1), NULLIF(:tls_us, -1), NULLIF(:first_byte_us, -1), :total_us";
        let into = format!("attempts ({ATTEMPT})");
        rows.insert(self.last(), &into, values, "ON CONFLICT (id) DO NOTHING");
    }
}

const ATTEMPT: &str = "id, delivery_id, project_id, endpoint_id, event_id, number, started_at, status_code, \
                       error_class, error_detail, request_headers, response_headers, response_body, flags, peer, \
                       dns_us, connect_us, tls_us, first_byte_us, total_us";

fn read_attempt(row: &Row) -> Result<Attempt> {
    let class = row.try_get_by_index::<Option<i16>>(8)?.and_then(ErrorClass::from_code);
    let detail: Option<String> = row.try_get_by_index(9)?;
    let request_headers: Option<String> = row.try_get_by_index(10)?;
    let response_headers: Option<String> = row.try_get_by_index(11)?;
    let body: Option<Vec<u8>> = row.try_get_by_index(12)?;
    let flags: i16 = row.try_get_by_index(13)?;
    let peer: Option<String> = row.try_get_by_index(14)?;
    Ok(Attempt {
        id: AttemptId::from_uuid(row.try_get_by_index(0)?),
        delivery: DeliveryId::from_uuid(row.try_get_by_index(1)?),
        project: ProjectId::from_uuid(row.try_get_by_index(2)?),
        endpoint: EndpointId::from_uuid(row.try_get_by_index(3)?),
        event: EventId::from_uuid(row.try_get_by_index(4)?),
        number: unsigned(row.try_get_by_index(5)?).unwrap_or_default(),
        request_headers: parse_headers(request_headers.as_deref())?,
        outcome: AttemptOutcome {
            started_at: Timestamp::from_millis(row.try_get_by_index(6)?),
            status: row.try_get_by_index::<Option<i16>>(7)?.and_then(unsigned),
            error: class.map(|class| (class, detail.unwrap_or_default())),
            response_headers: parse_headers(response_headers.as_deref())?,
            headers_truncated: flags & 2 != 0,
            body: body.unwrap_or_default().into(),
            body_truncated: flags & 1 != 0,
            peer: peer.and_then(|peer| peer.parse().ok()),
            timings: Timings {
                dns_us: micros(row.try_get_by_index(15)?),
                connect_us: micros(row.try_get_by_index(16)?),
                tls_us: micros(row.try_get_by_index(17)?),
                first_byte_us: micros(row.try_get_by_index(18)?),
                total_us: micros(row.try_get_by_index(19)?).unwrap_or_default(),
                reused: flags & 4 != 0,
            },
            retry_after: None,
        },
    })
}

fn flags(attempt: &Attempt) -> i16 {
    let outcome = &attempt.outcome;
    i16::from(outcome.body_truncated)
        | i16::from(outcome.headers_truncated) << 1
        | i16::from(outcome.timings.reused) << 2
}

fn stored_micros(value: Option<u32>) -> i32 {
    value.map_or(-1, |value| i32::try_from(value).unwrap_or(i32::MAX))
}

fn micros(stored: Option<i32>) -> Option<u32> {
    stored.and_then(|stored| u32::try_from(stored).ok())
}
