//! Metrics of a running node for Prometheus: `GET /metrics` over HTTP, where `--metrics ADDRESS` says.
//!
//! Every answer is made from what the node's loop says at that moment, so it is what `rumormill status`
//! and `rumormill peers` print. There is no other page and nothing can be changed through it, but
//! whoever reaches the address reads it: it belongs on the loopback interface or a private network.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::control::{Answer, MemberLine, Request as Question, Status};
use crate::daemon::Handle;

/// Connections served at a time.
const CONNECTIONS_MAX: usize = 8;

/// How long a connection may stay: one scrape.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers scrapes until the task is dropped.
pub async fn serve(listener: TcpListener, handle: Handle) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No more files, most likely: they come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let handle = handle.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, handle.clone()));
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).keep_alive(false);
            let served = server.serve_connection(TokioIo::new(stream), service);
            // Who is too slow, or hangs up, gets no answer.
            let _ = tokio::time::timeout(PATIENCE, served).await;
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    handle: Handle,
) -> Result<Response<String>, Infallible> {
    let plain = |status: StatusCode, text: &str| {
        let mut response = Response::new(text.to_owned());
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "the only page is /metrics\n"));
    }
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return Ok(response);
    }
    let (status, members) = (handle.ask(Question::Status).await, handle.ask(Question::Peers).await);
    let (Some(Answer::Status(status)), Some(Answer::Peers { members })) = (status, members) else {
        return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "the node is ending\n"));
    };
    let mut response = Response::new(text(&status, &members));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}

type Labels = Vec<(&'static str, String)>;

/// The page.
fn text(status: &Status, members: &[MemberLine]) -> String {
    let mut registry = Registry::with_prefix("rumormill");
    let labels = vec![
        ("run", status.run.clone()),
        ("node", status.node.clone()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    registry.register("node", "Who this is", Info::new(labels));
    let gauges: [(&str, &str, u64); 7] = [
        ("round", "Rounds closed", status.round),
        ("rounds", "Rounds of the run", status.rounds),
        ("certified_heights", "Heights certified", status.certified),
        ("heights", "Heights of the run", status.heights),
        ("members", "Members of the run", status.members as u64),
        ("neighbors", "Neighbors that are connected", status.peers.len() as u64),
        ("stalled", "1 while there is nothing to measure", status.stalled.is_some().into()),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(value as i64));
    }
    let counts = &status.counts;
    let counters: [(&str, &str, u64); 11] = [
        ("probes", "Probes measured", status.probes),
        ("records", "Records of others accepted for the first time", counts.accepted),
        ("duplicates", "Records received again", counts.duplicates),
        ("sent_bytes", "Bytes of frames sent", counts.bytes_sent),
        ("received_bytes", "Bytes of frames received", counts.bytes_received),
        ("exchanges", "Exchanges begun", counts.exchanges),
        ("impatient_rounds", "Rounds closed for lack of patience", counts.impatient),
        ("offences", "Frames and statements that broke the protocol", counts.offences),
        ("acks", "Acks signed", counts.acks),
        ("dropped", "Records that came too late to be certified", counts.dropped),
        ("audits", "Probes of others repeated", counts.audits),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, ConstCounter::new(value));
    }
    register_members(&mut registry, members);
    let mut page = String::new();
    match encode(&mut page, &registry) {
        Ok(()) => page,
        // Writing to a string does not fail.
        Err(_) => String::new(),
    }
}

/// What is known of every member: a line each.
fn register_members(registry: &mut Registry, members: &[MemberLine]) {
    type Values = Family<Labels, Gauge<f64, AtomicU64>>;
    type ValueOf<'a> = &'a dyn Fn(&MemberLine) -> Option<(f64, Option<String>)>;
    let of_all = |registry: &mut Registry, name: &str, help: &str, value: ValueOf<'_>| {
        let family = Values::default();
        for member in members {
            let Some((value, cause)) = value(member) else { continue };
            let mut labels = vec![("member", member.node.clone())];
            labels.extend(cause.map(|cause| ("cause", cause)));
            family.get_or_create(&labels).set(value);
        }
        registry.register(name, help, family);
    };
    let plain = |value: Option<f64>| value.map(|value| (value, None));
    of_all(registry, "member_connected", "1 for a neighbor", &|member| {
        plain(Some(f64::from(u8::from(member.connected))))
    });
    let help = "Mean weight of a member's records in closed rounds, beside the mean of all";
    of_all(registry, "member_weight", help, &|member| plain(member.weight));
    let help = "Mean correlation of a member's values with the others'";
    of_all(registry, "member_trust", help, &|member| plain(member.trust));
    let help = "Correlation of a member's bytes with their repetitions by auditors";
    of_all(registry, "member_audit_score", help, &|member| plain(member.audit_score));
    let help = "1 while audits cast doubt on a member, so that its records have no weight";
    of_all(registry, "member_doubted", help, &|member| {
        plain(Some(f64::from(u8::from(member.doubted))))
    });
    let help = "Round from which on an excluded member's records count for nothing, and why";
    of_all(registry, "member_excluded_from_round", help, &|member| {
        let cause = member.cause.map(|cause| cause.to_string());
        member.excluded_from_round.map(|round| (round as f64, cause))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Cause;

    #[test]
    fn the_page_says_who_is_excluded_and_why() {
        let member = MemberLine {
            node: "liar".into(),
            connected: true,
            weight: Some(0.25),
            trust: None,
            audit_score: Some(-0.5),
            doubted: true,
            excluded_from_round: Some(64),
            cause: Some(Cause::Audits),
        };
        let page = text(&Status::default(), &[member]);
        for line in [
            "rumormill_member_connected{member=\"liar\"} 1.0",
            "rumormill_member_audit_score{member=\"liar\"} -0.5",
            "rumormill_member_doubted{member=\"liar\"} 1.0",
            "rumormill_member_excluded_from_round{member=\"liar\",cause=\"audits\"} 64.0",
            "rumormill_probes_total 0",
            "# EOF",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
        assert!(!page.contains("member_trust{"), "{page}");
    }
}
