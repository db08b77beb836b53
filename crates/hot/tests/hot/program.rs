//! Programs of the tests, and how they are started.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(30);
/// More would be a program that spins, or a leak of its records.
pub const MOST_BYTES: u64 = 5 << 20;

/// A directory of the test's own, which goes with it.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tcpr-hot-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn target() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    test.ancestors().nth(2).expect("the directory of the build").to_owned()
}

pub fn example(name: &str) -> String {
    let path = target().parent().expect("the target directory").join("examples").join(name);
    assert!(path.exists(), "{} is missing: make examples", path.display());
    path.to_str().expect("a path in UTF-8").to_owned()
}

pub fn installed(name: &str) -> String {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is missing: make test-deps installs it")).to_str().expect("UTF-8").to_owned()
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// With a trace in a file.
pub fn start(mode: &str, trace: &Path, place: &Place, command: &[String]) -> Child {
    let environment = [
        format!("LD_PRELOAD={}", library().display()),
        format!("TCPR_HOT_FILE={}", trace.display()),
        format!("TCPR_HOT_MODE={mode}"),
        format!("TCPR_HOT_LIMIT={}", 2 * MOST_BYTES),
    ];
    start_with(&environment, mode, place, command)
}

pub fn library() -> PathBuf {
    let library = target().join("libtcpr_hot.so");
    assert!(library.exists(), "{} is missing: cargo build --release -p tcpr-hot", library.display());
    library
}

/// Without address space layout randomization, with an environment of its own. Output goes to NAME.out and NAME.err.
pub fn start_with(environment: &[String], name: &str, place: &Place, command: &[String]) -> Child {
    // `env` sets the preload, so that neither it nor setarch is recorded.
    Command::new("setarch")
        .args(["-R", "env", "-i", "PATH=/usr/bin:/bin", "HOME=/nonexistent"])
        .args(environment)
        .args(command)
        .current_dir(&place.0)
        .stdin(Stdio::null())
        .stdout(fs::File::create(place.file(&format!("{name}.out"))).expect("a file for the output"))
        .stderr(fs::File::create(place.file(&format!("{name}.err"))).expect("a file for the errors"))
        .spawn()
        .expect("setarch starts")
}

pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.is_ok_and(|s| s.success()), "kill -{name} {}", child.id());
}

pub fn wait_for(child: &mut Child, what: &str) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("{what} did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn u64_at(trace: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(trace[at..at + 8].try_into().expect("eight bytes"))
}

pub fn connect(port: u16) -> TcpStream {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                stream.set_nodelay(true).expect("TCP_NODELAY");
                return stream;
            }
            Err(e) if begun.elapsed() > PATIENCE => panic!("nobody listens on port {port}: {e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

pub fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

pub fn redis(port: u16) -> Vec<String> {
    let mut command =
        words(&format!("{} --port {port} --bind 127.0.0.1 --appendonly no --loglevel warning", installed("redis-server")));
    command.extend(["--save".to_owned(), String::new()]);
    command
}

/// Its configuration lies in the directory.
pub fn ngircd(port: u16, place: &Place) -> Vec<String> {
    let configuration = place.file("ngircd.conf");
    let text = format!(
        "[Global]\nName = irc.test.net\nListen = 127.0.0.1\nPorts = {port}\nInfo = x\nAdminInfo1 = x\nMotdPhrase = hello\n\
         [Options]\nDNS = no\nIdent = no\nPAM = no\n[Limits]\nMaxConnectionsIP = 0\n"
    );
    fs::write(&configuration, text).expect("a configuration");
    words(&format!("{} -n -f {}", installed("ngircd"), configuration.display()))
}
