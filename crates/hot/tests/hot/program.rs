//! Programs of the tests, and how they are started.

use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

// As in `tcpr_session::trace::memory`.
pub const TRACE: u64 = (64 << 10) + SNAPSHOT_ROOM;
const SNAPSHOT: u64 = 1032;
const SNAPSHOT_WRITTEN: u64 = 1048;
const SNAPSHOT_READ: u64 = 1056;
const SNAPSHOT_BYTES: u64 = 64 << 10;
const SNAPSHOT_ROOM: u64 = 1 << 20;

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
    start_from(mode, trace, None, place, command)
}

/// With a snapshot, too.
pub fn start_from(mode: &str, trace: &Path, snapshot: Option<&Path>, place: &Place, command: &[String]) -> Child {
    let mut environment = vec![
        format!("LD_PRELOAD={}", library().display()),
        format!("TCPR_HOT_FILE={}", trace.display()),
        format!("TCPR_HOT_MODE={mode}"),
        format!("TCPR_HOT_LIMIT={}", 2 * MOST_BYTES),
    ];
    environment.extend(snapshot.map(|path| format!("TCPR_HOT_SNAPSHOT={}", path.display())));
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

/// Takes a snapshot of the program that writes its trace into this memory, as a manager does, and puts it into a file. Or the
/// program says why there is none.
pub fn take_snapshot(memory: &File, path: &Path, mut meanwhile: impl FnMut()) -> Result<(), String> {
    const ASKED: u32 = 1;
    const DONE: u32 = 3;
    const REFUSED: u32 = 4;
    let number = |at: u64, bytes: usize| {
        let mut number = [0; 8];
        memory.read_exact_at(&mut number[..bytes], at).expect("read");
        u64::from_ne_bytes(number)
    };
    let mut to = File::create(path).expect("a file");
    memory.write_all_at(&ASKED.to_ne_bytes(), SNAPSHOT).expect("written");
    let begun = Instant::now();
    let mut read = 0;
    loop {
        let state = number(SNAPSHOT, 4) as u32;
        let written = if state == ASKED { 0 } else { number(SNAPSHOT_WRITTEN, 8) };
        let mut reason = [0; 960];
        memory.read_exact_at(&mut reason, 64).expect("read");
        let reason = String::from_utf8_lossy(&reason).trim_end_matches('\0').to_owned();
        if state == REFUSED {
            return Err(reason);
        }
        assert!(begun.elapsed() < PATIENCE, "no snapshot: {reason}");
        if written > read {
            let n = (written - read).min(SNAPSHOT_ROOM - read % SNAPSHOT_ROOM);
            let mut bytes = vec![0; n as usize];
            memory.read_exact_at(&mut bytes, SNAPSHOT_BYTES + read % SNAPSHOT_ROOM).expect("read");
            to.write_all(&bytes).expect("written");
            read += n;
            memory.write_all_at(&read.to_ne_bytes(), SNAPSHOT_READ).expect("written");
        } else if state == DONE {
            break;
        } else {
            meanwhile();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    memory.write_all_at(&0u32.to_ne_bytes(), SNAPSHOT).expect("written");
    Ok(())
}
