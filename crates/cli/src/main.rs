//! The command `tcpr`. Exit codes: 0 done, 1 failed, 2 usage; `status` has its own (see its help).

mod ask;
mod bench;
mod check;
mod demo;
mod doctor;
mod failure;
mod logger;
mod run;
mod trace;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tcpr_node::config::{Config, ConfigError};

#[derive(Parser)]
#[command(
    name = "tcpr",
    version,
    about = "Keeps the TCP connections of a server alive through the death of its process or machine",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone)]
struct Common {
    /// Configuration file [default: $TCPR_CONFIG, else /etc/tcpr/tcpr.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server under protection, in the foreground; logs go to stderr
    Run {
        /// Configuration file [default: $TCPR_CONFIG, else /etc/tcpr/tcpr.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Put no library into the program: for static, Go and set-uid ones (see docs/guarantees.md for what is then promised)
        #[arg(long)]
        no_preload: bool,
        /// The server and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
        program: Vec<std::ffi::OsString>,
    },
    /// Say what this member is; exits 0 if a failure would be survived, 1 if not, 3 if no manager runs
    Status {
        #[command(flatten)]
        common: Common,
        /// What exit code 0 stands for: that a failure would be survived, or that the program's memory would survive, too (4 if
        /// only the connections would)
        #[arg(long, value_enum, value_name = "WHAT", default_value = "protected")]
        require: ask::Require,
    },
    /// List the protected connections
    Sessions(Common),
    /// Hand the service over to the partner
    Switchover(Common),
    /// Kill the server and start it again (a new version of it, say); on the master its connections go on
    Restart(Common),
    /// Check the configuration file
    Check {
        #[command(flatten)]
        common: Common,
        /// Say whether `tcpr run --no-preload` will take it, too
        #[arg(long)]
        no_preload: bool,
    },
    /// Find out what this kernel and these privileges allow, and what to do about it
    Doctor(Common),
    /// Print a new key for replication; put the same file on both members
    Keygen,
    /// Print the trace of a hot standby that is in a file
    Trace(trace::Options),
    /// Remove what a killed manager left behind: packet rules, virtual IP, laboratories of dead processes
    Cleanup(Common),
    /// Show a chat that survives the death of its machine, on this machine, in network namespaces
    Demo {
        /// Print the steps as JSON
        #[arg(long)]
        json: bool,
        /// How many clients chat
        #[arg(long, default_value_t = 3)]
        clients: usize,
    },
    /// Measure what a failover takes and what protection costs, on this machine, in network namespaces
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let usage = error.use_stderr();
            if let Err(failed) = error.print() {
                eprintln!("tcpr: {failed}");
            }
            return ExitCode::from(if usage { 2 } else { 0 });
        }
    };
    let result = match cli.command {
        Command::Run { config, no_preload, program } => run::run(config, no_preload, program),
        Command::Status { common, require } => ask::status(&common, require),
        Command::Sessions(c) => ask::sessions(&c),
        Command::Switchover(c) => ask::switchover(&c),
        Command::Restart(c) => ask::restart(&c),
        Command::Check { common, no_preload } => check::check(&common, no_preload),
        Command::Doctor(c) => doctor::doctor(&c),
        Command::Keygen => {
            print!("{}", tcpr_node::key::generate());
            Ok(0)
        }
        Command::Trace(options) => trace::trace(&options),
        Command::Cleanup(c) => check::cleanup(&c),
        Command::Demo { json, clients } => demo::demo(json, clients),
        Command::Bench(options) => bench::bench(&options),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("tcpr: {failure}");
            ExitCode::from(1)
        }
    }
}

fn load(config: Option<&PathBuf>) -> Result<Config, ConfigError> {
    Config::load(config.map(PathBuf::as_path))
}
