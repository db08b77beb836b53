//! What a running manager is asked: status, sessions, switchover, restart.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use tcpr_node::config::Config;
use tcpr_node::manager::control::{socket_path, ControlRequest};
use tcpr_node::table;

use crate::failure::Failure;
use crate::{load, Common};

/// Exit code of `status` where no manager runs.
const NO_MANAGER: u8 = 3;
/// Exit code of `status --require hot` where the connections would survive a failure, and the program's memory would not.
const NOT_HOT: u8 = 4;

/// What `status` exits with 0 for.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Require {
    Protected,
    Hot,
}

pub fn ask(config: &Config, request: &ControlRequest) -> Result<Value, Failure> {
    let path = socket_path(&config.service.run_dir);
    let talk = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        writeln!(stream, "{}", serde_json::to_string(request)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    let line = talk().map_err(|cause| Failure::NoManager { socket: path, cause })?;
    serde_json::from_str(&line).map_err(Failure::NoAnswer)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("-")
}

/// `tcpr status`.
pub fn status(common: &Common, require: Require) -> Result<u8, Failure> {
    let config = load(common.config.as_ref())?;
    let answer = match ask(&config, &ControlRequest::Status) {
        Ok(answer) => answer,
        Err(why) => {
            if common.json {
                println!(
                    "{}",
                    serde_json::json!({ "member": config.me().name, "role": "none", "protected": false, "error": why.to_string() })
                );
            } else {
                eprintln!("tcpr: {why}");
            }
            return Ok(NO_MANAGER);
        }
    };
    let protected = answer.get("protected").and_then(Value::as_bool).unwrap_or(false);
    if common.json {
        println!("{answer}");
    } else {
        println!("member     {}", text(&answer, "member"));
        println!("role       {}", text(&answer, "role"));
        println!("epoch      {}", answer["epoch"]);
        let unaccepted = answer["unaccepted"].as_u64().filter(|n| *n > 0);
        let unaccepted = unaccepted.map(|n| format!("the program does not accept {n} recovered sessions"));
        let told = [&answer["host"]["missing"], &answer["program_trouble"]].into_iter().filter_map(Value::as_str);
        let why: Vec<&str> = told.chain(unaccepted.as_deref()).collect();
        let missing = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
        println!("protected  {}{missing}", if protected { "yes" } else { "no" });
        match answer.get("partner") {
            Some(Value::Object(_)) => {
                let p = &answer["partner"];
                println!(
                    "partner    {} at {}, {}{}",
                    text(p, "member"),
                    text(p, "address"),
                    text(p, "role"),
                    p["trouble"].as_str().map(|t| format!(" ({t})")).unwrap_or_default()
                );
            }
            _ => println!("partner    none configured"),
        }
        println!("standby    {}", standby_words(&answer["standby"]));
        println!("sessions   {}", answer["sessions"]);
    }
    Ok(exit_code(&answer, require))
}

fn exit_code(answer: &Value, require: Require) -> u8 {
    if answer["protected"] != true {
        1
    } else if require == Require::Hot && answer["standby"]["state"] != "following" {
        NOT_HOT
    } else {
        0
    }
}

fn standby_words(standby: &Value) -> String {
    match text(standby, "mode") {
        "hot" => {}
        "cold" => return "cold".into(),
        _ => return "warm".into(),
    }
    let state = match text(standby, "state") {
        "none" => "no follower",
        state => state,
    };
    let lag = match (standby["lag_records"].as_u64(), standby["lag_ms"].as_f64()) {
        (Some(1), _) => ", 1 record behind".to_owned(),
        (Some(records), Some(ms)) if records > 0 => format!(", {records} records ({ms:.1} ms) behind"),
        (Some(records), _) => format!(", {records} records behind"),
        (None, _) => String::new(),
    };
    let reason = standby["reason"].as_str().map(|why| format!(" ({why})")).unwrap_or_default();
    format!("hot, {state}{lag}, {} bytes of trace{reason}", standby["trace_bytes"])
}

/// `tcpr sessions`: what the manager has, or a dead one has left. It is read from the session table: a manager that had to say
/// it would be busy with that for as long as there are sessions.
pub fn sessions(common: &Common) -> Result<u8, Failure> {
    let config = load(common.config.as_ref())?;
    let path = table::path(&config.service.state_dir);
    let runs = ask(&config, &ControlRequest::Status);
    let (pid, rows) = match table::read(&path) {
        Ok(read) => read,
        Err(cause) => {
            return Err(match runs {
                Ok(_) => Failure::NoTable { path, cause },
                Err(manager) => Failure::NothingLeft { manager: Box::new(manager), cause },
            })
        }
    };
    if let Err(why) = &runs {
        eprintln!("tcpr: {why}; this is what the last one (pid {pid}) held, from {}", path.display());
    }
    let answer = serde_json::json!({ "member": config.me().name, "manager": runs.is_ok(), "sessions": rows });
    if common.json {
        println!("{answer}");
        return Ok(0);
    }
    println!("{:>8}  {:<22} {:<22} {:>12} {:>12}  state", "session", "local", "peer", "in", "out");
    for s in answer["sessions"].as_array().into_iter().flatten() {
        let state = if s["torn"] == true {
            "torn"
        } else if s["established"] == false {
            "opening"
        } else if s["finished"] == true || s["peer_finished"] == true {
            "closing"
        } else {
            "established"
        };
        println!(
            "{:>8}  {:<22} {:<22} {:>12} {:>12}  {state}",
            s["session"],
            text(s, "local"),
            text(s, "peer"),
            s["in_stored"],
            s["out_done"]
        );
    }
    Ok(0)
}

/// `tcpr switchover`: returns when the partner is master, or says why not.
pub fn switchover(common: &Common) -> Result<u8, Failure> {
    let config = load(common.config.as_ref())?;
    let answer = ask(&config, &ControlRequest::Switchover)?;
    if let Some(why) = answer.get("error").and_then(Value::as_str) {
        return Err(Failure::Refused(why.to_owned()));
    }
    let Some(status) = status_when(&config, Duration::from_secs(30), |status| status["role"] == "backup")? else {
        return Err(Failure::NotTakenOver);
    };
    if common.json {
        println!("{status}");
    } else {
        println!("{} is master now", text(&status["partner"], "member"));
    }
    Ok(0)
}

/// The first status of which this is true, if one comes in time.
fn status_when(config: &Config, patience: Duration, is: impl Fn(&Value) -> bool) -> Result<Option<Value>, Failure> {
    let before = Instant::now();
    loop {
        // A manager that gives up very many sessions has no time to answer meanwhile.
        let asked = ask(config, &ControlRequest::Status);
        let late = before.elapsed() >= patience;
        match asked {
            Ok(status) if is(&status) => return Ok(Some(status)),
            Err(why) if late => return Err(why),
            _ if late => return Ok(None),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// `tcpr restart`: returns when the new process has all sessions, or says what is missing.
pub fn restart(common: &Common) -> Result<u8, Failure> {
    let config = load(common.config.as_ref())?;
    let answer = ask(&config, &ControlRequest::Restart)?;
    if let Some(why) = answer.get("error").and_then(Value::as_str) {
        return Err(Failure::Refused(why.to_owned()));
    }
    let again = |status: &Value| {
        let started = status["program_starts"].as_u64() > answer["program_starts"].as_u64();
        // A program without the library joins nobody; its sessions are restored by its own listener.
        let joined = status["hooked"] == false || status["applications"].as_u64().is_some_and(|n| n > 0);
        started && joined && status["restoring"] == false
    };
    let Some(status) = status_when(&config, Duration::from_secs(30), again)? else {
        return Err(Failure::NotRestarted);
    };
    if common.json {
        println!("{status}");
    } else {
        println!("restarted; {} sessions go on", status["sessions"]);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_code_says_what_would_survive() {
        let status =
            |protected: bool, state: &str| json!({ "protected": protected, "standby": { "mode": "hot", "state": state } });
        for (state, code) in [("following", 0), ("joining", 4), ("diverged", 4), ("full", 4), ("none", 4)] {
            assert_eq!(exit_code(&status(true, state), Require::Hot), code, "{state}");
            assert_eq!(exit_code(&status(true, state), Require::Protected), 0);
            assert_eq!(exit_code(&status(false, state), Require::Hot), 1);
            assert_eq!(exit_code(&status(false, state), Require::Protected), 1);
        }
        assert_eq!(exit_code(&json!({ "protected": true }), Require::Hot), 4, "a manager that knows no standby");
    }

    #[test]
    fn the_standby_in_words() {
        let hot = |state: &str, records: Option<u64>, ms: Option<f64>, reason: Option<&str>| {
            let (lag_records, lag_ms) = (records, ms);
            let mode = "hot";
            standby_words(&json!({ "mode": mode, "state": state, "lag_records": lag_records, "lag_ms": lag_ms, "reason": reason,
                "trace_bytes": 77 }))
        };
        assert_eq!(standby_words(&json!({ "mode": "warm", "state": "none" })), "warm");
        assert_eq!(standby_words(&json!({ "mode": "cold", "state": "none" })), "cold");
        assert_eq!(standby_words(&Value::Null), "warm", "a manager that knows no standby");
        assert_eq!(hot("none", None, None, None), "hot, no follower, 77 bytes of trace");
        assert_eq!(hot("following", Some(12), Some(0.34), None), "hot, following, 12 records (0.3 ms) behind, 77 bytes of trace");
        assert_eq!(hot("following", Some(1), None, None), "hot, following, 1 record behind, 77 bytes of trace");
        assert_eq!(hot("following", Some(0), Some(0.0), None), "hot, following, 0 records behind, 77 bytes of trace");
        assert_eq!(hot("diverged", None, None, Some("record 8")), "hot, diverged, 77 bytes of trace (record 8)");
    }
}
