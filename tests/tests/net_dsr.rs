//! Mode `dsr-l2` on real networks: backends own the service's address and answer past the load
//! balancer.

use anyhow::Result;
use lb_tests::{
    claims,
    client::Download,
    scene::{Mode, Scene},
    server::{BigFile, Nginx},
    topology::{
        Arms::{One, Two},
        Family::{V4, V6},
        service,
    },
    wait,
};
use std::net::SocketAddr;

claims::addresses_are_true!(Mode::DsrL2);

#[test]
fn shares_follow_weights_two_arms_v6() -> Result<()> {
    claims::shares_follow_weights(Mode::DsrL2, Two, V6, &[1, 2, 5])
}

#[test]
fn shares_follow_weights_one_arm_v4() -> Result<()> {
    claims::shares_follow_weights(Mode::DsrL2, One, V4, &[3, 1])
}

#[test]
fn a_long_answer_does_not_pass_the_load_balancer() -> Result<()> {
    let scene = Scene::build(Mode::DsrL2, One, V4, &[1])?;
    let to = SocketAddr::new(service(V4), 80);
    let host = &scene.network.backends[0];
    let file = BigFile::random(50_000_000)?;
    let _nginx = Nginx::start(&host.netns, "b1", &[to], Some(file.path()))?;
    scene
        .agent
        .ok(&format!("service add {to}/tcp --name http --mode dsr-l2"))?;
    scene
        .agent
        .ok(&format!("backend add http {}", host.address(V4)))?;
    scene.agent.resolved()?;
    let download = Download::start(&scene.network.client.netns, to, "1G")?;
    assert_eq!(download.finish(wait::LONG)?, file.sha256);
    let http = scene.agent.carried("http")?;
    // Acknowledgements go through it, the 34,500 packets of the file do not.
    assert!((10..34_500).contains(&http.forward), "{http:?}");
    assert_eq!(http.back, 0, "{http:?}");
    Ok(())
}

#[test]
fn a_fresh_router_finds_the_load_balancer_and_not_a_backend() -> Result<()> {
    let scene = Scene::build(Mode::DsrL2, One, V4, &[1, 1])?;
    let router = scene.network.router.as_ref().expect("one arm has a router");
    let mac = scene
        .network
        .balancer
        .netns
        .mac("eth0")?
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    for _ in 0..5 {
        router.netns.ip("neigh flush dev eth1")?;
        scene.conversation()?.ask("who")?;
        let known = router
            .netns
            .tool(&format!("ip neigh show to {} dev eth1", service(V4)))?;
        assert!(known.contains(&mac), "{known}");
    }
    Ok(())
}
