//! The command line's side.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{
    Detach, Detached, Edited, Edits, Event, Flow, FlowFilter, FlowSummary, Flushed, RecipeFilter,
    Refusal, Stats, Status,
};
use crate::{config::RawConfig, instance::Instance, recipe::Recipe};

/// How long an agent may take to end.
const ENDING: Duration = Duration::from_secs(3);

/// How often it is looked whether it has.
const GLANCE: Duration = Duration::from_millis(20);

/// A way to an agent. Every request opens a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    instance: Instance,
    socket: PathBuf,
}

impl Client {
    /// The agent of this instance, whether it runs or not.
    pub fn new(instance: &Instance) -> Self {
        Self {
            instance: instance.clone(),
            socket: instance.socket(),
        }
    }

    /// Whether an agent answers on the socket.
    pub async fn is_there(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    /// The state of everything.
    ///
    /// # Errors
    ///
    /// These, and all requests: when no agent runs, or it refuses.
    pub async fn status(&self) -> Result<Status> {
        self.read("/v1/status").await
    }

    /// The state of everything, if an agent runs. One that is just ending is waited for: for a
    /// moment its socket takes what nobody will answer.
    ///
    /// # Errors
    ///
    /// When an agent runs and refuses, or does not get to its end.
    pub async fn status_if_any(&self) -> Result<Option<Status>> {
        let deadline = Instant::now() + ENDING;
        while self.is_there().await {
            match self.status().await {
                Ok(status) => return Ok(Some(status)),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(GLANCE).await,
            }
        }
        Ok(None)
    }

    /// The counters.
    ///
    /// # Errors
    ///
    /// As [`Client::status`].
    pub async fn stats(&self) -> Result<Stats> {
        self.read("/v1/stats").await
    }

    /// The flows that `filter` lets through.
    ///
    /// # Errors
    ///
    /// As [`Client::status`].
    pub async fn flows(&self, filter: &FlowFilter) -> Result<Vec<Flow>> {
        let FlowFilter {
            service,
            backend,
            client,
            limit,
        } = filter;
        let parts = [
            ("service", service.clone()),
            ("backend", backend.clone()),
            ("client", client.map(|c| c.to_string())),
            ("limit", limit.map(|l| l.to_string())),
        ];
        let query: Vec<String> = parts
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", encoded(&value?))))
            .collect();
        self.read(&format!("/v1/flows?{}", query.join("&"))).await
    }

    /// Forgets the flows that `filter` lets through.
    ///
    /// # Errors
    ///
    /// As [`Client::status`].
    pub async fn flush(&self, filter: &FlowFilter) -> Result<Flushed> {
        self.write("/v1/flows/flush", filter).await
    }

    /// How many flows there are.
    ///
    /// # Errors
    ///
    /// As [`Client::status`].
    pub async fn flow_summary(&self) -> Result<FlowSummary> {
        self.read("/v1/flows/summary").await
    }

    /// What the backends of a service need.
    ///
    /// # Errors
    ///
    /// As [`Client::status`].
    pub async fn recipe(&self, filter: &RecipeFilter) -> Result<Vec<Recipe>> {
        let RecipeFilter { service, backend } = filter;
        let mut path = format!("/v1/recipe?service={}", encoded(service));
        if let Some(backend) = backend {
            path += &format!("&backend={}", encoded(backend));
        }
        self.read(&path).await
    }

    /// The configuration as it was written.
    ///
    /// # Errors
    ///
    /// As [`Client::status`].
    pub async fn config(&self) -> Result<RawConfig> {
        self.read("/v1/config").await
    }

    /// Makes changes, or says what they would be.
    ///
    /// # Errors
    ///
    /// As [`Client::status`].
    pub async fn edit(&self, edits: &Edits) -> Result<Edited> {
        self.write("/v1/edits", edits).await
    }

    /// Detaches.
    ///
    /// # Errors
    ///
    /// As [`Client::status`].
    pub async fn detach(&self, detach: &Detach) -> Result<Detached> {
        self.write("/v1/detach", detach).await
    }

    /// Hands the last events to `each`, and, if `follow`, those to come until the agent ends.
    ///
    /// # Errors
    ///
    /// As [`Client::status`], and when `each` fails.
    pub async fn events(
        &self,
        follow: bool,
        mut each: impl FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let path = format!("/v1/events?follow={follow}");
        let mut body = self.ask(Method::GET, &path, None).await?.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.context("the agent has ended")?.into_data() else {
                continue;
            };
            text.extend_from_slice(&bytes);
            while let Some(end) = text.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                each(serde_json::from_slice(&line).context("the agent's answer")?)?;
            }
        }
        Ok(())
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        whole(self.ask(Method::GET, path, None).await?).await
    }

    async fn write<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).context("request as JSON")?;
        whole(self.ask(Method::POST, path, Some(body)).await?).await
    }

    /// The answer, if it is not a refusal.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .context("cannot talk to the agent")?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "lb-user")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body.unwrap_or_default()))
            .context("request")?;
        let response = sender
            .send_request(request)
            .await
            .context("the agent ended before it answered: see its log")?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let Refusal { error } = whole(response).await?;
        bail!("{error}")
    }

    /// What it means that the socket does not answer.
    fn unreachable(&self, error: &io::Error) -> anyhow::Error {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
                "no agent runs for instance {:?}: sudo lb-user attach eth1{}",
                self.instance.name(),
                self.instance.option()
            ),
            io::ErrorKind::PermissionDenied => {
                anyhow!("only root may talk to the agent: use sudo")
            }
            _ => anyhow!(
                "cannot reach the agent at {}: {error}",
                self.socket.display()
            ),
        }
    }
}

async fn whole<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T> {
    let body = response.into_body().collect().await;
    let bytes = body
        .context("the agent ended while it answered")?
        .to_bytes();
    serde_json::from_slice(&bytes).context("the agent's answer is of another version: restart it")
}

/// `text` as it may stand in a query.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
