//! Whether a failover would find somebody to serve: who has not joined is found out, and told (`crate::serving`).

use std::collections::BTreeSet;
use std::time::Duration;

use tcpr_session::role::Role;
use tcpr_session::Now;

use super::notify::Notify;
use super::Manager;
use crate::config::Readiness;
use crate::serving::{self, Question, Seen, Watch};
use crate::sockdiag::Ours;

/// How often it is looked who serves the protected ports, and how often where it is not the program.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// What lasts for less is no news: a program takes its time to start.
const LASTS: Duration = Duration::from_secs(2);

pub(super) struct Serving {
    watch: Option<Watch>,
    due: Now,
    seen: Option<Seen>,
    /// What is wrong, and since when; what of it is in the log.
    trouble: Option<(Now, String)>,
    said: Option<String>,
    /// Ports on which a process has ever said that it listens, and how many these were when it was looked.
    told: BTreeSet<u16>,
    asked_with: usize,
}

impl Serving {
    pub(super) fn new(ours: Ours) -> Serving {
        let watch = Watch::new(ours).map_err(|error| log::warn!(error:%; "cannot watch who serves the protected ports")).ok();
        Serving { watch, due: Duration::ZERO, seen: None, trouble: None, said: None, told: BTreeSet::new(), asked_with: 0 }
    }

    /// What was seen was of the one before it.
    pub(super) fn program_starts(&mut self) {
        self.seen = None;
        self.due = Duration::ZERO;
    }

    pub(super) fn note_listening(&mut self, port: u16) {
        self.told.insert(port);
    }
}

impl Manager {
    /// Processes that have joined, and are the same programs as then.
    pub(super) fn applications(&self) -> usize {
        self.apps.telling().count()
    }

    /// Why nobody here would serve the sessions after a failover.
    pub(super) fn program_trouble(&self) -> Option<String> {
        if !self.may_start_program() {
            return self.serving.seen.as_ref().and_then(|seen| seen.cannot_start.clone());
        }
        self.program_missing().or_else(|| self.program_not_ready())
    }

    /// What the configuration waits for that the program has yet to do.
    fn program_not_ready(&self) -> Option<String> {
        match self.config.service.life.ready {
            Readiness::Joined => None,
            Readiness::Listen => {
                let Some(seen) = &self.serving.seen else {
                    return Some(
                        "the program is not ready (ready = \"listen\"): it is not known yet where it listens".to_owned(),
                    );
                };
                let listening = seen.listening.as_ref()?;
                let silent = self.config.service.ports.iter().map(|p| p.port).find(|port| !listening.contains(port))?;
                Some(format!("the program is not ready (ready = \"listen\"): nobody listens on port {silent}"))
            }
            Readiness::Notify => {
                let ready = self.notify.as_ref().is_none_or(Notify::is_ready);
                (!ready).then(|| "the program is not ready (ready = \"notify\"): it has not said READY=1 by sd_notify".to_owned())
            }
        }
    }

    fn program_missing(&self) -> Option<String> {
        let strangers = self.serving.seen.iter().flat_map(|seen| &seen.strangers);
        let ended = || self.program.as_ref().and_then(|program| program.trouble.clone());
        if self.filter.hooked() {
            let stranger = strangers.map(String::as_str).collect::<Vec<_>>().join("; ");
            let unknown = || "no process of the program has joined".to_owned();
            return match self.applications() {
                _ if !stranger.is_empty() => Some(stranger),
                0 if !self.serving.seen.as_ref().is_some_and(|seen| seen.dormant) => Some(ended().unwrap_or_else(unknown)),
                _ => None,
            };
        }
        if self.program.as_ref().is_some_and(|program| program.pid().is_none()) {
            return Some(ended().unwrap_or_else(|| "the program does not run".to_owned()));
        }
        let idle = !self.config.service.ports.is_empty() && !self.serving.seen.as_ref().is_some_and(Seen::has_listener);
        idle.then(|| "the program listens on no protected port".to_owned())
    }

    pub(super) fn serving_timers(&mut self, now: Now) {
        if now < self.serving.due {
            return;
        }
        self.serving.due = now + if self.serving.trouble.is_some() { LOOK_AGAIN } else { LOOK };
        let joined = self.apps.telling().collect();
        let told = self.serving.told.iter().copied().collect();
        let rests = self.program.as_ref().filter(|_| !self.may_start_program());
        let program = rests.map(|program| (program.name().to_owned(), program.is_hooked()));
        let Some(watch) = &mut self.serving.watch else { return };
        // A program that joined meanwhile would be taken for a stranger.
        if let Some(seen) = watch.take().filter(|_| self.serving.told.len() == self.serving.asked_with) {
            self.serving.seen = Some(seen);
        }
        if watch.ask(Question { joined, told, unhooked: !self.filter.hooked(), program }) {
            self.serving.asked_with = self.serving.told.len();
        }
        let trouble = self.program_trouble();
        let serving = &mut self.serving;
        if trouble.as_ref() != serving.trouble.as_ref().map(|(_, text)| text) {
            serving.trouble = trouble.map(|text| (now, text));
        }
        if self.serving.trouble.is_none() && self.role.role() != Role::Starting {
            self.notify.iter_mut().for_each(Notify::tell_above);
        }
        let serving = &mut self.serving;
        let lasting = serving.trouble.as_ref().filter(|(since, _)| now >= *since + LASTS).map(|(_, text)| text.clone());
        self.tell_program(lasting.as_deref());
        let serving = &mut self.serving;
        match &serving.trouble {
            Some((since, text)) if now >= *since + LASTS && serving.said.as_ref() != Some(text) => {
                log::error!("not protected: {text}");
                serving.said = Some(text.clone());
            }
            None if serving.said.take().is_some() => log::info!("the program is ready"),
            _ => {}
        }
    }

    /// What is known of a program file that ends as soon as it is started.
    pub(super) fn note_program_trouble(&mut self, what: String) {
        let Some(program) = &mut self.program else { return };
        let advice = program.is_hooked().then(|| serving::advice(program.name())).flatten();
        program.trouble = Some(advice.map_or(what.clone(), |advice| format!("{what}: {advice}")));
    }
}
