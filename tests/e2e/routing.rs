//! Non-stop routing: BIRD with a hot standby, and two BGP speakers of other makes that know nothing of it. BIRD connects to one
//! of them, and the other one connects to BIRD.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tcpr_lab::{wait_for, Host, Process};

use crate::hot::{follows, hot};
use crate::world::{Dir, World, PATIENCE};

/// The members' kernels are not alike but for these routes: one of them has the virtual address.
const BIRD: &str = "log stderr all;
router id 192.0.2.200;
protocol device { scan time 10; }
protocol kernel { learn; scan time 1; ipv4 { import where net ~ [ 198.51.100.0/24+ ]; export none; }; }
template bgp speaker {
    local 192.0.2.200 port 5555 as 65000; multihop; hold time 9; connect delay time 1;
    ipv4 { import all; export all; next hop self; };
}
protocol bgp gobgp from speaker { neighbor 192.0.2.9 port 1790 as 65001; }
protocol bgp frr from speaker { neighbor 192.0.2.10 as 65002; passive; }
";

const GOBGP: &str = "[global.config]
as = 65001
router-id = \"192.0.2.9\"
port = 1790
local-address-list = [\"192.0.2.9\"]
[[neighbors]]
[neighbors.config]
neighbor-address = \"192.0.2.200\"
peer-as = 65000
[neighbors.transport.config]
passive-mode = true
local-address = \"192.0.2.9\"
[neighbors.timers.config]
hold-time = 9
keepalive-interval = 3
[neighbors.ebgp-multihop.config]
enabled = true
multihop-ttl = 64
";

/// Withdrawals are logged.
const FRR: &str = "log stdout debugging
debug bgp updates in
router bgp 65002
 bgp router-id 192.0.2.10
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 192.0.2.200 remote-as 65000
 neighbor 192.0.2.200 port 5555
 neighbor 192.0.2.200 ebgp-multihop 64
 neighbor 192.0.2.200 update-source 192.0.2.10
 neighbor 192.0.2.200 timers 3 9
 neighbor 192.0.2.200 timers connect 2
";

/// The two speakers.
pub struct Speakers {
    host: Host,
    place: PathBuf,
    _gobgp: Process,
    frr: Process,
}

impl Speakers {
    pub fn start(w: &World) -> Speakers {
        w.peer.ip_cmd("addr add 192.0.2.10/24 dev eth0").expect("a second address");
        let place = w.peer.dir().join("frr");
        std::fs::create_dir_all(&place).expect("a directory");
        let file = |name: &str, text: &str| {
            let path = place.join(name);
            std::fs::write(&path, text).expect("a configuration");
            path.display().to_string()
        };
        let mut gobgp = Command::new("gobgpd");
        gobgp.args(["-f", &file("gobgp.toml", GOBGP)]);
        let gobgp = w.peer.spawn("gobgpd", gobgp).expect("gobgpd (apt-get install gobgpd)");
        let mut frr = Command::new("/usr/lib/frr/bgpd");
        frr.args(["-n", "-Z", "-S", "-p", "0", "-P", "0", "-f", &file("frr.conf", FRR)]);
        frr.args(["-i", &place.join("pid").display().to_string(), "--vty_socket", &place.display().to_string()]);
        let frr = w.peer.spawn("bgpd", frr).expect("bgpd (apt-get install frr)");
        Speakers { host: w.peer.clone(), place, _gobgp: gobgp, frr }
    }

    /// Where vtysh finds bgpd.
    pub fn place(&self) -> &str {
        self.place.to_str().expect("a path in letters")
    }

    pub fn run(&self, command: &[&str]) -> String {
        let mut c = Command::new(command[0]);
        c.args(&command[1..]);
        let out = self.host.run(c, Duration::from_secs(20)).unwrap_or_else(|e| panic!("{}: {e}", command[0]));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn json(&self, command: &[&str]) -> Value {
        serde_json::from_str(&self.run(command)).unwrap_or(Value::Null)
    }

    pub fn gobgp(&self, words: &str) -> Value {
        self.json(&["gobgp"].into_iter().chain(words.split(' ')).chain(["-j"]).collect::<Vec<_>>())
    }

    pub fn frr(&self, words: &str) -> Value {
        self.json(&["vtysh", "--vty_socket", self.place(), "-d", "bgpd", "-c", words])
    }

    /// What each says of its session: whether it is up, how often it went down, and how many routes were withdrawn.
    pub fn sessions(&self) -> [(bool, u64, u64); 2] {
        let state = &self.gobgp("neighbor 192.0.2.200")["state"];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let withdrawn = number(&state["messages"]["received"]["withdraw_update"]);
        let gobgp = (state["session_state"] == 6, number(&state["flops"]), withdrawn);
        let frr = &self.frr("show bgp neighbors 192.0.2.200 json")["192.0.2.200"];
        let withdrawn = self.frr.out().lines().filter(|line| line.contains("withdrawn")).count() as u64;
        [gobgp, (frr["bgpState"] == "Established", number(&frr["connectionsDropped"]), withdrawn)]
    }

    pub fn both_have(&self, prefix: &str) -> bool {
        let gobgp = self.gobgp("global rib");
        let frr = self.frr("show bgp ipv4 unicast json");
        gobgp.get(prefix).is_some() && frr["routes"].get(prefix).is_some()
    }
}

#[test]
fn bgp_sessions_stay_established_through_ten_failovers() {
    let place = Dir::new("bird");
    let program = ["bird", "-f", "-c", &place.file("conf", BIRD), "-s", &place.0.join("ctl").display().to_string()];
    let mut w = World::new("bird", hot("bgp").extra("[[service.outgoing]]\naddress = \"192.0.2.9:1790\"\n"), &program);
    let speakers = Speakers::start(&w);
    let learnt = |w: &World, prefix: &str| {
        for member in 0..2 {
            w.pair.host(member).ip_cmd(&format!("route add blackhole {prefix} proto static")).expect("a route");
        }
    };
    let up = [(true, 0, 0); 2];
    let both_up = wait_for(PATIENCE, || speakers.sessions() == up);
    assert!(both_up, "{:?}\n{}", speakers.sessions(), w.pair.describe());
    let mut prefixes = vec!["198.51.100.0/27".to_owned()];
    learnt(&w, &prefixes[0]);
    for (round, fault) in w.faults(10).into_iter().enumerate() {
        follows(&w);
        w.fail_over(fault);
        // One route that BIRD finds in its kernel, and one that a speaker announces and BIRD passes on.
        let (found, told) = (format!("198.51.100.{}/32", 128 + round), format!("198.51.100.{}/32", 64 + round));
        learnt(&w, &found);
        speakers.run(&["gobgp", "global", "rib", "add", &told]);
        prefixes.extend([found, told]);
        for prefix in &prefixes {
            let there = wait_for(PATIENCE, || speakers.both_have(prefix));
            assert!(there, "round {round}, {fault:?}: {prefix} is missing\n{}", w.pair.describe());
        }
        assert_eq!(speakers.sessions(), up, "round {round}, {fault:?}\n{}", w.pair.describe());
        eprintln!("round {round}: {fault:?}");
    }
    w.no_reset();
}
