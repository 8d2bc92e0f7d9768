//! The agent's side: HTTP on its socket becomes [`Request`]s to the one task that owns the maps.

use std::{convert::Infallible, fmt::Write as _};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UnixListener,
    sync::{broadcast, mpsc, oneshot},
};

use super::{
    Detach, Detached, Edited, Edits, Event, Flow, FlowFilter, FlowSummary, Flushed, RecipeFilter,
    Refusal, Stats, Status,
};
use crate::{config::RawConfig, recipe::Recipe};

/// Where the answer to a request goes.
pub type Reply<T> = oneshot::Sender<anyhow::Result<T>>;

/// What is asked of the agent.
#[derive(Debug)]
pub enum Request {
    /// The state of everything.
    Status(Reply<Status>),
    /// The counters.
    Stats(Reply<Stats>),
    /// Some of the flows.
    Flows(FlowFilter, Reply<Vec<Flow>>),
    /// Forgets some of the flows.
    Flush(FlowFilter, Reply<Flushed>),
    /// How many flows there are.
    FlowSummary(Reply<FlowSummary>),
    /// What backends need.
    Recipe(RecipeFilter, Reply<Vec<Recipe>>),
    /// The configuration as it was written.
    Config(Reply<RawConfig>),
    /// The last events, and those to come.
    Events(Reply<EventStream>),
    /// Changes of the configuration.
    Edits(Edits, Reply<Edited>),
    /// Detaching, and the end of the agent.
    Detach(Detach, Reply<Detached>),
}

/// The last events, oldest first, and those that follow.
#[derive(Debug)]
pub struct EventStream {
    /// What has happened.
    pub past: Vec<Event>,
    /// What will.
    pub coming: broadcast::Receiver<Event>,
}

/// Answers requests on `listener` for as long as the agent listens.
///
/// # Errors
///
/// When the socket fails.
pub async fn serve(listener: UnixListener, agent: mpsc::Sender<Request>) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/stats", get(stats))
        .route("/v1/flows", get(flows))
        .route("/v1/flows/summary", get(flow_summary))
        .route("/v1/flows/flush", post(flush))
        .route("/v1/recipe", get(recipe))
        .route("/v1/config", get(config))
        .route("/v1/events", get(events))
        .route("/v1/edits", post(edits))
        .route("/v1/detach", post(detach))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "there is no such request"))
        .with_state(agent);
    axum::serve(listener, routes).await
}

type Agent = State<mpsc::Sender<Request>>;

async fn status(State(agent): Agent) -> Response {
    answer(ask(&agent, Request::Status).await)
}

async fn stats(State(agent): Agent) -> Response {
    answer(ask(&agent, Request::Stats).await)
}

async fn flows(State(agent): Agent, Query(filter): Query<FlowFilter>) -> Response {
    answer(ask(&agent, |reply| Request::Flows(filter, reply)).await)
}

async fn flush(State(agent): Agent, body: Result<Json<FlowFilter>, JsonRejection>) -> Response {
    match body {
        Ok(Json(filter)) => answer(ask(&agent, |reply| Request::Flush(filter, reply)).await),
        Err(error) => refusal(StatusCode::BAD_REQUEST, error.body_text()),
    }
}

async fn flow_summary(State(agent): Agent) -> Response {
    answer(ask(&agent, Request::FlowSummary).await)
}

async fn recipe(State(agent): Agent, Query(filter): Query<RecipeFilter>) -> Response {
    answer(ask(&agent, |reply| Request::Recipe(filter, reply)).await)
}

async fn config(State(agent): Agent) -> Response {
    answer(ask(&agent, Request::Config).await)
}

async fn edits(State(agent): Agent, body: Result<Json<Edits>, JsonRejection>) -> Response {
    match body {
        Ok(Json(edits)) => answer(ask(&agent, |reply| Request::Edits(edits, reply)).await),
        Err(error) => refusal(StatusCode::BAD_REQUEST, error.body_text()),
    }
}

async fn detach(State(agent): Agent, body: Result<Json<Detach>, JsonRejection>) -> Response {
    match body {
        Ok(Json(names)) => answer(ask(&agent, |reply| Request::Detach(names, reply)).await),
        Err(error) => refusal(StatusCode::BAD_REQUEST, error.body_text()),
    }
}

/// What `GET /v1/events` takes.
#[derive(Deserialize)]
struct Follow {
    #[serde(default)]
    follow: bool,
}

async fn events(State(agent): Agent, Query(Follow { follow }): Query<Follow>) -> Response {
    let EventStream { past, coming } = match ask(&agent, Request::Events).await {
        Ok(stream) => stream,
        Err(error) => return answer::<()>(Err(error)),
    };
    let mut text = String::new();
    for event in &past {
        line(&mut text, event);
    }
    if !follow {
        return text.into_response();
    }
    let first = futures_util::stream::once(async move { Ok::<_, Infallible>(Bytes::from(text)) });
    let later = futures_util::stream::unfold(coming, async |mut coming| {
        loop {
            match coming.recv().await {
                Ok(event) => {
                    let mut text = String::new();
                    line(&mut text, &event);
                    return Some((Ok(Bytes::from(text)), coming));
                }
                // A reader that is too slow misses events.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    Body::from_stream(futures_util::StreamExt::chain(first, later)).into_response()
}

fn line(text: &mut String, event: &Event) {
    if let Ok(json) = serde_json::to_string(event) {
        let _ = writeln!(text, "{json}");
    }
}

/// Asks the agent and waits for its answer.
async fn ask<T>(
    agent: &mpsc::Sender<Request>,
    request: impl FnOnce(Reply<T>) -> Request,
) -> anyhow::Result<T> {
    let ends = || anyhow::anyhow!("the agent is ending");
    let (reply, answer) = oneshot::channel();
    agent.send(request(reply)).await.map_err(|_| ends())?;
    answer.await.map_err(|_| ends())?
}

fn answer<T: Serialize>(result: anyhow::Result<T>) -> Response {
    match result {
        Ok(body) => Json(body).into_response(),
        Err(error) => refusal(StatusCode::UNPROCESSABLE_ENTITY, format!("{error:#}")),
    }
}

fn refusal(status: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into();
    (status, Json(Refusal { error })).into_response()
}
