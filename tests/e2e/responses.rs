//! Requests and their responses: connections that open, half-close and end at any moment of a failover, and responses
//! that are under way when it comes.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use tcpr_lab::member::Service;

use crate::ipv6::{Over, V4, V6};
use crate::requests::{connect, pause, through};
use crate::world::{PATIENCE, PORT};

/// One connection each: a stream, its end, then the server's answer, and its end.
#[test]
fn streams_end_on_either_side_through_ten_failovers() {
    streams_end(&V4);
}

#[test]
fn streams_end_on_either_side_over_ipv6() {
    streams_end(&V6);
}

fn streams_end(over: &Over) {
    let script = format!("{}/tests/digest_server.py", env!("CARGO_MANIFEST_DIR"));
    let mut w = (over.new)("digest", Service::new("digest", PORT), &["python3", &script, "5555", over.any]);
    let faults = w.faults(over.failovers);
    let to = w.pair.addr();
    through(&mut w, 8, &faults, |clients, mut rng| {
        while !clients.stop.load(Relaxed) {
            let mut stream = connect(to)?;
            let port = stream.local_addr().map_or(0, |a| a.port());
            let at = |what: &'static str| move |e: std::io::Error| format!("{what} from port {port}: {e}");
            let sent: Vec<u8> = (0..rng.range(1, 100_000)).map(|i| (i * 7 + i / 251) as u8).collect();
            for part in sent.chunks(rng.range(1, 40_000) as usize) {
                stream.write_all(part).map_err(at("write"))?;
                pause(&mut rng, 40);
            }
            stream.shutdown(Shutdown::Write).map_err(at("shutdown"))?;
            let mut got = Vec::new();
            let mut chunk = vec![0; 60_000];
            loop {
                let n = stream.read(&mut chunk).map_err(at("read"))?;
                if n == 0 {
                    break;
                }
                got.extend_from_slice(&chunk[..n]);
                pause(&mut rng, 30);
            }
            let line = got.iter().position(|b| *b == b'\n').ok_or_else(|| format!("port {port}: no answer"))?;
            let head = String::from_utf8_lossy(&got[..line]).into_owned();
            let (length, digest) = head.split_once(' ').ok_or_else(|| format!("port {port}: {head:?}"))?;
            if length != sent.len().to_string() || got.len() - line - 1 != 300_000 {
                return Err(format!(
                    "port {port}: sent {}, it says {length}; {} bytes of body",
                    sent.len(),
                    got.len() - line - 1
                ));
            }
            let expected: String = (0..18_750).map(|i| format!("{}{i:07}\n", &digest[..8])).collect();
            let wrong = got[line + 1..].iter().zip(expected.as_bytes()).position(|(a, b)| a != b);
            if let Some(at) = wrong {
                return Err(format!("port {port}: byte {at} of the body is wrong"));
            }
            clients.done.fetch_add(1, Relaxed);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// The files that nginx serves: their bytes tell their place.
fn files_in(dir: &Path) -> Vec<(&'static str, Vec<u8>)> {
    fs::create_dir_all(dir).expect("a directory");
    [("small", 3_000), ("middle", 300_000), ("big", 6_000_000)]
        .into_iter()
        .map(|(name, length)| {
            let bytes: Vec<u8> = (0..length / 10).flat_map(|i| format!("{i:09}\n").into_bytes()).collect();
            fs::write(dir.join(name), &bytes).expect("written");
            (name, bytes)
        })
        .collect()
}

/// A directory that goes with the test.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// nginx from Debian as one process: keep-alive connections, downloads in their middle, several in one turn.
#[test]
fn nginx_goes_on_in_the_middle_of_its_downloads() {
    nginx(&Over { failovers: V6.failovers, ..V4 }, "5555");
}

#[test]
fn nginx_goes_on_through_ten_failovers_over_ipv6() {
    nginx(&Over { failovers: V4.failovers, ..V6 }, "[::]:5555");
}

fn nginx(over: &Over, listen: &str) {
    let root = std::env::temp_dir().join(format!("tcpr-nginx-{}-{}", std::process::id(), over.failovers));
    let _remove = Removed(root.clone());
    for name in ["body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    let dir = root.display();
    let config = root.join("nginx.conf");
    let text = format!(
        "user root; daemon off; master_process off; pid /dev/null; error_log stderr warn;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 100000; root {dir}/files;\n\
         client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
         server {{ listen {listen}; }} }}\n"
    );
    fs::write(&config, text).expect("written");
    let service = Service::new("nginx", PORT).port_key("independent", "true");
    let path = config.display().to_string();
    let mut w = (over.new)("nginx", service, &["nginx", "-c", &path, "-p", &root.display().to_string()]);
    let files = files_in(&root.join("files"));
    let faults = w.faults(over.failovers);
    let to = w.pair.addr();
    through(&mut w, 6, &faults, |clients, mut rng| {
        let mut stream = connect(to)?;
        let port = stream.local_addr().map_or(0, |a| a.port());
        let mut rest = Vec::new();
        while !clients.stop.load(Relaxed) {
            let (name, bytes) = &files[rng.range(0, files.len() as u64 - 1) as usize];
            let at = |what: &str, e: &dyn std::fmt::Display| format!("{what} of {name}, port {port}: {e}");
            let request = format!("GET /{name} HTTP/1.1\r\nHost: tcpr\r\n\r\n");
            stream.write_all(request.as_bytes()).map_err(|e| at("request", &e))?;
            let mut chunk = vec![0; 100_000];
            let mut got = std::mem::take(&mut rest);
            let end = loop {
                if let Some(head) = got.windows(4).position(|w| w == b"\r\n\r\n") {
                    let end = head + 4 + bytes.len();
                    if got.len() >= end {
                        rest = got.split_off(end);
                        break head;
                    }
                }
                let n = match stream.read(&mut chunk) {
                    Ok(n) if n > 0 => n,
                    ended => {
                        let head = got.windows(4).position(|w| w == b"\r\n\r\n").map_or(got.len(), |head| head + 4);
                        let wrong = got[head..].iter().zip(bytes).position(|(a, b)| a != b);
                        let got = (head, got.len() - head);
                        return Err(at("response", &format!("{ended:?} after {got:?} bytes, wrong from {wrong:?}")));
                    }
                };
                got.extend_from_slice(&chunk[..n]);
                if bytes.len() > 1_000_000 {
                    pause(&mut rng, 30);
                }
            };
            if !got.starts_with(b"HTTP/1.1 200") || got[end + 4..] != bytes[..] {
                let wrong = got[end + 4..].iter().zip(bytes).position(|(a, b)| a != b);
                return Err(at("response", &format!("is wrong from byte {wrong:?} of {}", got.len())));
            }
            clients.done.fetch_add(1, Relaxed);
            pause(&mut rng, 20);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}
