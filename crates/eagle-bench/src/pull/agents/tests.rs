use serde_json::json;
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::{host::Host, pull::series::SeriesName};

fn step(clients: u32, iterations: u32) -> Step {
    let images = vec!["registry.example/app:1".parse().unwrap()];
    Step { series: SeriesName::Eagle, images, share: Share::whole(clients), iterations }
}

fn record(share: Share, number: u32) -> PullRecord {
    serde_json::from_value(json!({
        "series": "eagle", "concurrency": share.of, "iteration": share.of_step(number) + 1, "success": true,
        "seconds": 0.5, "bytes": 100, "manifest_seconds": 0.125, "first_byte_seconds": 0.25, "error": null, "agent": null,
    }))
    .unwrap()
}

fn pull(record: PullRecord) -> Answer {
    Answer::Pull(Box::new(record))
}

const END: Answer = Answer::End(StepEnd { elapsed_seconds: 2.0, image_bytes: None });

/// Agents without connections: their ends are here.
struct Stage {
    agents: Agents,
    orders: Vec<Receiver<Order>>,
    events: mpsc::Sender<Event>,
}

impl Stage {
    fn new(count: usize) -> Self {
        let (events, heard) = mpsc::channel(RECORDS);
        let (senders, orders): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(1)).unzip();
        let info =
            AgentInfo { hostname: "node".into(), version: "0".into(), build: "debug".into(), host: Host::this() };
        let result = |place| AgentResult {
            runtime_version: None,
            name: format!("node-{place}").into(),
            info: info.clone(),
            round_trip_seconds: 0.0,
            error: None,
        };
        let agents = Agents {
            results: (0..count).map(result).collect(),
            orders: senders,
            events: heard,
            round_trip: Duration::ZERO,
            _links: JoinSet::new(),
        };
        Self { agents, orders, events }
    }

    /// What becomes of a step when these are the answers, in this order, whatever is asked.
    async fn step(&mut self, step: &Step, answers: Vec<(usize, Result<Answer>)>) -> (Pulled, Counts) {
        for answer in answers {
            self.events.send(answer).await.unwrap();
        }
        let counts = Counts::default();
        (self.agents.step(step, &counts).await, counts)
    }
}

/// The error of the agent that was lost, after it is sure that it is reported.
fn lost(stage: &Stage, pulled: &Pulled, place: usize) -> String {
    let lost = pulled.lost.as_ref().unwrap_or_else(|| panic!("nobody is lost: {pulled:?}"));
    assert_eq!(*lost.agent, *format!("node-{place}"));
    let reported: Vec<_> = stage.agents.results().iter().map(|agent| agent.error.as_deref()).collect();
    assert_eq!(reported.iter().flatten().count(), 1, "{reported:?}");
    assert_eq!(reported[place], Some(&*lost.error));
    lost.to_string()
}

#[tokio::test]
async fn shares_become_one_step() {
    let mut stage = Stage::new(2);
    let step = step(3, 2);
    let shares = Share::split(3, 2);
    let mut answers = vec![(1, Ok(Answer::Progress { done: 1, bytes: 100 }))];
    answers.push((0, Ok(Answer::Progress { done: 3, bytes: 300 })));
    for number in (0..4).rev() {
        answers.push((0, Ok(pull(record(shares[0], number)))));
    }
    answers.extend((0..2).map(|number| (1, Ok(pull(record(shares[1], number))))));
    answers.push((0, Ok(Answer::End(StepEnd { elapsed_seconds: 3.0, image_bytes: Some(7) }))));
    answers.push((1, Ok(END)));
    let (pulled, counts) = stage.step(&step, answers).await;
    assert!(pulled.lost.is_none(), "{pulled:?}");
    assert_eq!(pulled.end, StepEnd { elapsed_seconds: 3.0, image_bytes: Some(7) });
    assert_eq!(pulled.records.iter().map(|record| record.iteration).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let agents: Vec<_> = pulled.records.iter().map(|record| record.agent.as_deref().unwrap()).collect();
    assert_eq!(agents, ["node-0", "node-0", "node-1", "node-0", "node-0", "node-1"]);
    assert_eq!((counts.done.into_inner(), counts.bytes.into_inner()), (4, 400));
    for (orders, share) in stage.orders.iter_mut().zip(shares) {
        let (command, _) = orders.try_recv().unwrap();
        assert!(matches!(command, Command::Step(step) if step.share == share && step.iterations == 2));
    }
}

#[tokio::test]
async fn who_has_no_share_is_not_asked() {
    let mut stage = Stage::new(3);
    let answers = vec![(0, Ok(pull(record(Share { clients: 1, first: 0, of: 1 }, 0)))), (0, Ok(END))];
    let (pulled, _) = stage.step(&step(1, 1), answers).await;
    assert!(pulled.lost.is_none() && pulled.records.len() == 1, "{pulled:?}");
    assert!(stage.orders[0].try_recv().is_ok());
    assert!(stage.orders[1].try_recv().is_err() && stage.orders[2].try_recv().is_err());
}

#[tokio::test]
async fn a_lost_agent_is_named_and_its_pulls_are_kept() {
    let mut stage = Stage::new(2);
    let shares = Share::split(4, 2);
    let answers = vec![
        (0, Ok(pull(record(shares[0], 0)))),
        (1, Ok(pull(record(shares[1], 0)))),
        (1, Err(anyhow::anyhow!("the connection broke"))),
    ];
    let (pulled, _) = stage.step(&step(4, 1), answers).await;
    assert_eq!(lost(&stage, &pulled, 1), "agent node-1: the connection broke");
    assert_eq!(pulled.records.len(), 2);
}

#[tokio::test]
async fn what_an_agent_cannot_have_done_is_not_believed() {
    let shares = Share::split(2, 2);
    let own = || record(shares[1], 0);
    let changed = |name: &str, value: serde_json::Value| {
        let mut record = serde_json::to_value(own()).unwrap();
        record[name] = value;
        vec![pull(serde_json::from_value(record).unwrap())]
    };
    let cases = [
        (vec![pull(record(shares[0], 0))], "not its own"),
        (vec![pull(own()), pull(own())], "twice"),
        (changed("iteration", json!(0)), "not its own"),
        (changed("iteration", json!(4)), "not its own"),
        (changed("iteration", json!(u32::MAX)), "not its own"),
        (changed("series", json!("direct")), "not its own"),
        (changed("concurrency", json!(1)), "not its own"),
        (changed("seconds", json!(-1.0)), "-1 s"),
        (changed("seconds", json!(1e300)), "took"),
        (changed("first_byte_seconds", json!(-0.5)), "-0.5 s"),
        (changed("success", json!(false)), "failed and did not"),
        (vec![END], "after 0 of 1 pulls"),
        (vec![pull(own()), Answer::End(StepEnd { elapsed_seconds: -1.0, image_bytes: None })], "-1 s"),
        (vec![Answer::Failed { error: "no skopeo".to_owned() }], "no skopeo"),
        (vec![Answer::Pong], "not asked"),
        (vec![pull(own()), END, Answer::Progress { done: 1, bytes: 1 }], "without being asked"),
    ];
    for (answers, wanted) in cases {
        let mut stage = Stage::new(2);
        let mut events: Vec<_> = answers.into_iter().map(|answer| (1, Ok(answer))).collect();
        // The other does what it should, in the end.
        events.extend([(0, Ok(pull(record(shares[0], 0)))), (0, Ok(END))]);
        let (pulled, _) = stage.step(&step(2, 1), events).await;
        let error = lost(&stage, &pulled, 1);
        assert!(error.contains(wanted), "{error}, not {wanted}");
    }
}

#[tokio::test]
async fn agents_are_named_by_where_they_are() {
    let url = |text: &str| text.parse::<Url>().unwrap();
    assert_eq!(name(&url("http://node-1:43010")), "node-1:43010");
    assert_eq!(name(&url("http://[::1]")), "[::1]:80");
    let plan = Plan {
        image: "debian:12".parse().unwrap(),
        direct: false,
        registry: None,
        proxies: Vec::new(),
        runtime: None,
        alias: None,
    };
    let twice = [url("http://node-1:80"), url("http://node-1/")];
    let error = Agents::connect(&twice, None, &plan).await.err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("--agent: an agent is named twice"));
    let nobody = Agents::connect(&[url("http://127.0.0.1:1")], None, &plan).await.err();
    let error = format!("{:#}", nobody.unwrap());
    assert!(error.contains("agent 127.0.0.1:1: it cannot be reached"), "{error}");
}
