//! Reading a server's measures.

use std::time::Duration;

use super::{PATIENCE, World, pass_time, web};

/// One series' value.
pub fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Scrapes until a series has that value.
pub async fn reaches(world: &World, series: &str, expected: f64) -> String {
    let scraping = async {
        loop {
            let (status, text) = web::get(world.server.admin(), "/metrics").await;
            assert_eq!(status, 200);
            if value(&text, series) == Some(expected) {
                return text;
            }
        }
    };
    match tokio::time::timeout(PATIENCE, scraping).await {
        Ok(text) => text,
        Err(_) => panic!(
            "{series} did not reach {expected}\n{}",
            web::get(world.server.admin(), "/metrics").await.1
        ),
    }
}

/// Scrapes until a series has passed that value.
pub async fn passes(world: &World, series: &str, least: f64) {
    becomes(world, series, |value| value >= least).await;
}

pub async fn falls_below(world: &World, series: &str, limit: f64) {
    becomes(world, series, |value| value < limit).await;
}

async fn becomes(world: &World, series: &str, wanted: impl Fn(f64) -> bool) {
    let scraping = async {
        loop {
            let (_, text) = web::get(world.server.admin(), "/metrics").await;
            if value(&text, series).is_some_and(&wanted) {
                return;
            }
            // Read every few seconds.
            pass_time(Duration::from_millis(100)).await;
        }
    };
    let passed = tokio::time::timeout(PATIENCE, scraping).await;
    passed.unwrap_or_else(|_| panic!("{series} did not become what it must"));
}
