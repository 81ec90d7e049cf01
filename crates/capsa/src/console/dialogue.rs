//! Talking to a login prompt and a shell over the console.
//!
//! A console has no frames: the echo of what was typed, the output and the next prompt are one
//! stream, and telling them apart takes knowledge of how terminals and shells behave. The shells
//! meant in comments are bash 5.2, dash 0.5 and busybox 1.35 ash; their echoes are in the tests.

use std::time::Duration;

use capsa_core::error::{Error, Result};
use capsa_core::problem::{ConfigProblem, ProblemKind};

use super::VmConsole;
use super::cursor::into_text;
use super::matcher::Matcher;

/// What can come after a user name or a password, in the order of the list below.
const ANSWERS: [&str; 3] = ["assword:", "incorrect", "[#$%>] "];
const ASKS_PASSWORD: usize = 0;
const REFUSED: usize = 1;

/// How many of the last bytes of a command are looked for in its echo. The whole command is not
/// always there: a shell on a dumb terminal scrolls a long line sideways.
const ECHO_TAIL: usize = 32;

/// How much of a line is compared with a command: room for [`ECHO_TAIL`] and what line editors write
/// where the line wraps.
const ECHO_LINE: u64 = 128;

/// What bash says between a command's echo and its output, on a terminal with bracketed paste.
const PASTE_OFF: &[u8] = b"\x1b[?2004l\r";

/// A prompt's line that is longer than this is not one.
const PROMPT_LINE: u64 = 512;

impl VmConsole {
    /// Logs in: waits for `login:`, types the user's name, types the password if the guest asks for
    /// one, and waits for the guest's answer, whatever time these take.
    ///
    /// The answer is positive when something that ends like a shell's prompt appears: `#`, `$`, `%`
    /// or `>` and a space. Everything that the guest says from the last thing typed on is left to be
    /// read, so the next step is to wait for the prompt that you expect.
    ///
    /// Not cancel safe: what was typed stays typed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] when the guest refuses the user, [`Error::MissingConfig`] when it
    /// asks for a password and there is none; [`Error::NotRunning`], [`Error::PatternNotFound`] and
    /// [`Error::ConsoleOverrun`] as when waiting and writing.
    pub async fn login(&mut self, user: &str, password: Option<&str>) -> Result<()> {
        let answers = Matcher::regexes(&ANSWERS)?;
        self.wait_for("login:").await?;
        self.write_line(user).await?;
        let mut answer = self.cursor.find(self.cursor.offset(), &answers).await?;
        if answer.pattern == ASKS_PASSWORD {
            let Some(password) = password else {
                return Err(Error::from_problems(vec![ConfigProblem::new(
                    ProblemKind::Missing,
                    "password",
                    format!("the guest asks for a password for user {user:?}"),
                )]));
            };
            self.cursor.move_to(answer.end);
            self.write_line(password).await?;
            answer = self.cursor.find(answer.end, &answers).await?;
        }
        match answer.pattern {
            ASKS_PASSWORD | REFUSED => Err(Error::from_problems(vec![ConfigProblem::value(
                "login",
                format!("the guest refused user {user:?}"),
            )])),
            _ => Ok(()),
        }
    }

    /// Runs a command in the shell that shows its prompt on the console, and returns what the
    /// command printed: without the echo of the command, without the next prompt, and with line ends
    /// as the command wrote them (`\n`, where the terminal makes `\r\n` of it).
    ///
    /// `prompt` is the end of the shell's prompt or all of it, as `"# "`. The rest of the prompt's
    /// line is recognised from the line on which the command is typed. Output from before the call
    /// is skipped. Afterwards the console's place is behind the new prompt.
    ///
    /// This is for guests without Capsa's agent, and has the limits of a screen: the shell must be
    /// at its prompt, the terminal must echo, a prompt that is part of the command's own output ends
    /// it early, messages of the kernel and of background jobs are taken for output, and there is no
    /// exit status (`echo $?` is a command like any other). Without line editing, a terminal takes
    /// 4095 bytes in a line.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no output, but the command has been typed, and runs on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an empty prompt and for a command with control characters, which
    /// would be typed as keys; [`Error::ConsoleOverrun`] also when the output is longer than what
    /// Capsa keeps; [`Error::NotRunning`] and [`Error::PatternNotFound`] as when waiting and writing.
    pub async fn run_command(&mut self, command: &str, prompt: &str) -> Result<String> {
        if prompt.is_empty() {
            return Err(invalid("prompt", "is empty"));
        }
        if command.contains(char::is_control) {
            return Err(invalid(
                "command",
                "has control characters, such as a newline",
            ));
        }
        let shown = Matcher::literals(&[prompt])?;

        let typed_at = self.cursor.buffer().end();
        let prompt = self.whole_prompt(typed_at, prompt.as_bytes());
        self.write_line(command).await?;
        let echoed = self.skip_echo(typed_at, command).await?;
        let end = self.cursor.find(echoed, &shown).await?.end;
        let (start, output) = self.cursor.between(echoed, end);
        self.cursor.move_to(end);
        if start > echoed {
            let bytes = start - echoed;
            return Err(Error::ConsoleOverrun { bytes });
        }
        Ok(into_text(without_frame(&output, &prompt)))
    }

    /// [`run_command`](Self::run_command) with a time limit. The command is not interrupted when it
    /// is over; [`send_interrupt`](Self::send_interrupt) does that.
    ///
    /// # Cancel safety
    ///
    /// As [`run_command`](Self::run_command).
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], which loses no output, and those of [`run_command`](Self::run_command).
    pub async fn run_command_timeout(
        &mut self,
        command: &str,
        prompt: &str,
        timeout: Duration,
    ) -> Result<String> {
        match tokio::time::timeout(timeout, self.run_command(command, prompt)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let shown: String = command.chars().take(80).collect();
                Err(self.timed_out(format!("running {shown:?} on the console"), timeout))
            }
        }
    }

    /// Where the echo of a command that was typed at `offset` ends.
    async fn skip_echo(&mut self, offset: u64, command: &str) -> Result<u64> {
        let newline = Matcher::literals(&["\n"])?;
        let mut end = offset;
        loop {
            end = self.cursor.find(end, &newline).await?.end;
            let from = end.saturating_sub(ECHO_LINE).max(offset);
            let (_, shown) = self.cursor.between(from, end);
            if is_echo(&shown, command) {
                return Ok(end);
            }
        }
    }

    /// The ends that a prompt has on the line that ends at `offset`: the whole line, if it shows the
    /// prompt, and in any case what the caller gave.
    fn whole_prompt(&self, offset: u64, prompt: &[u8]) -> [Vec<u8>; 2] {
        let (_, recent) = self
            .cursor
            .between(offset.saturating_sub(PROMPT_LINE), offset);
        let line = recent.rsplit(|&byte| byte == b'\n').next().unwrap_or(&[]);
        let shown = line
            .windows(prompt.len())
            .position(|window| window == prompt)
            .map_or(prompt, |position| &line[..position + prompt.len()]);
        [shown.to_vec(), prompt.to_vec()]
    }
}

/// Whether what the terminal shows up to a newline is the echo of `command` and of the Enter key.
///
/// Line editors mark where a long line wraps: ash with `\r\r\n`, bash by writing the next character,
/// `\r`, and that character again.
fn is_echo(shown: &[u8], command: &str) -> bool {
    if shown.ends_with(b"\r\r\n") {
        return false;
    }
    let mut line = Vec::with_capacity(shown.len());
    for (index, &byte) in shown.iter().enumerate() {
        match (byte, shown.get(index + 1)) {
            (b'\n', _) | (b'\r', Some(b'\r' | b'\n')) => {}
            (b'\r', _) => {
                line.pop();
            }
            _ => line.push(byte),
        }
    }
    let command = command.as_bytes().trim_ascii_end();
    let tail = &command[command.len().saturating_sub(ECHO_TAIL)..];
    line.trim_ascii_end().ends_with(tail)
}

/// The output without what surrounds it. `prompts` are tried in order.
fn without_frame(output: &[u8], prompts: &[Vec<u8>]) -> Vec<u8> {
    let output = output.strip_prefix(PASTE_OFF).unwrap_or(output);
    let output = prompts
        .iter()
        .find_map(|prompt| output.strip_suffix(prompt.as_slice()))
        .unwrap_or(output);
    let mut lines = Vec::with_capacity(output.len());
    for line in output.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(line) => {
                lines.extend_from_slice(line);
                lines.push(b'\n');
            }
            None => lines.extend_from_slice(line),
        }
    }
    lines
}

fn invalid(field: &'static str, message: &str) -> Error {
    Error::from_problems(vec![ConfigProblem::value(field, message)])
}

#[cfg(test)]
mod tests {
    use crate::console::CONSOLE_CAPACITY;
    use crate::console::tests::machine;
    use crate::{Error, Result};

    /// Types `command` at `prompt`, to which the terminal answers `answer`.
    async fn run(prompt: &str, command: &'static str, answer: &str) -> (Result<String>, String) {
        let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
        // Unread, and the like of what comes.
        let before = format!("{command}\r\nold # \r\n{prompt}");
        guest.says(before.as_bytes()).await;
        console.clone().wait_for(&before).await.unwrap();
        let running = tokio::spawn(async move {
            let output = console.run_command(command, "# ").await;
            (output, console)
        });
        assert_eq!(guest.takes_line().await, format!("{command}\n"));
        guest.says(answer.as_bytes()).await;
        let (output, mut console) = running.await.unwrap();
        drop(guest);
        console.wait_for("never").await.unwrap_err();
        (output, console.read_available().await.unwrap())
    }

    /// What the shells really say, in a terminal of 80 columns.
    #[tokio::test]
    async fn only_the_commands_output_is_returned() {
        let long = "echo abcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghij end";
        let said = &long["echo ".len()..];
        let same = ": xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
        let paste = "\x1b[?2004hroot@vm:~# ";
        for (prompt, command, answer, output) in [
            // dash
            (
                "root@vm:~# ",
                "echo hi",
                "echo hi\r\nhi\r\nroot@vm:~# ",
                "hi\n",
            ),
            ("root@vm:~# ", "true", "true\r\nroot@vm:~# ", ""),
            ("root@vm:~# ", "printf a", "printf a\r\naroot@vm:~# ", "a"),
            ("# ", "cd /; pwd", "cd /; pwd\r\n/\r\n# ", "/\n"),
            ("~ # ", "cd /", "cd /\r\n/ # ", "/ "),
            // The echo holds the prompt, and the output repeats the command.
            ("# ", "echo '# x'", "echo '# x'\r\n## x\r\n# ", "#"),
            ("# ", "# \\", "# \\\r\n# ", ""),
            // bash
            (
                paste,
                "echo hi",
                "echo hi\r\n\x1b[?2004l\rhi\r\n\x1b[?2004hroot@vm:~# ",
                "hi\n",
            ),
            (
                paste,
                long,
                &format!(
                    "{}\r{}\r\n\x1b[?2004l\r{said}\r\n{paste}",
                    &long[..70],
                    &long[69..]
                ),
                &format!("{said}\n"),
            ),
            // bash on a dumb terminal
            (
                "root@vm:~# ",
                long,
                &format!("\r<{}\r\n{said}\r\nroot@vm:~# ", &long[long.len() - 46..]),
                &format!("{said}\n"),
            ),
            // busybox ash
            (
                "root@vm:~# \x1b[6n",
                long,
                &format!(
                    "{}\r\r\n{}\r\n{said}\r\nroot@vm:~# \x1b[6n",
                    &long[..69],
                    &long[69..]
                ),
                &format!("{said}\n"),
            ),
            // What stands before the wrap ends like the whole.
            (
                "root@vm:~# \x1b[6n",
                same,
                &format!("{}\r\r\n{}\r\nroot@vm:~# \x1b[6n", &same[..69], &same[69..]),
                "",
            ),
        ] {
            let (result, rest) = run(prompt, command, answer).await;
            assert_eq!(result.unwrap(), output, "{answer:?}");
            assert!(answer.ends_with(&format!("# {rest}")), "{rest:?}");
        }
    }

    async fn log_in(
        password: Option<&'static str>,
        answers: &[(&str, &str)],
    ) -> (Result<()>, String) {
        let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
        guest
            .says(b"Debian GNU/Linux 12 vm ttyS0\r\n\r\nvm login: ")
            .await;
        let running = tokio::spawn(async move {
            let outcome = console.login("root", password).await;
            (outcome, console)
        });
        for (typed, answer) in answers {
            assert_eq!(guest.takes_line().await, format!("{typed}\n"));
            guest.says(answer.as_bytes()).await;
        }
        let (outcome, mut console) = running.await.unwrap();
        drop(guest);
        console.wait_for("never").await.unwrap_err();
        (outcome, console.read_available().await.unwrap())
    }

    #[tokio::test]
    async fn a_login_leaves_the_prompt_to_be_read() {
        let motd = "Linux vm 6.1.0\r\nLast login: Mon May  4 on ttyS0\r\nroot@vm:~# ";
        let (outcome, rest) = log_in(None, &[("root", &format!("root\r\n{motd}"))]).await;
        outcome.unwrap();
        assert_eq!(rest, format!(" root\r\n{motd}"));

        let asked = [
            ("root", "root\r\nPassword: "),
            ("secret", &format!("\r\n{motd}")),
        ];
        let (outcome, rest) = log_in(Some("secret"), &asked).await;
        outcome.unwrap();
        assert_eq!(rest, format!(" \r\n{motd}"));
    }

    #[tokio::test]
    async fn a_refused_login_is_an_error() {
        let asked = [
            ("root", "root\r\nPassword: "),
            ("secret", "\r\nLogin incorrect\r\nvm login: "),
        ];
        let (outcome, _) = log_in(Some("secret"), &asked).await;
        let error = outcome.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("login: the guest refused user \"root\""),
            "{error}"
        );

        let (outcome, _) = log_in(None, &asked[..1]).await;
        assert_eq!(outcome.unwrap_err().code(), "E0203");
    }

    #[tokio::test]
    async fn a_command_is_one_line_and_a_prompt_is_something() {
        let (mut console, _guest) = machine(CONSOLE_CAPACITY);
        for (command, prompt) in [("a\nb", "# "), ("a\tb", "# "), ("a", "")] {
            let error = console.run_command(command, prompt).await.unwrap_err();
            assert_eq!(error.code(), "E0202");
        }
    }

    #[tokio::test]
    async fn output_that_does_not_fit_is_an_error_and_the_next_command_works() {
        let (mut console, mut guest) = machine(64);
        guest.says(b"# ").await;
        console.wait_for("# ").await.unwrap();
        let running = tokio::spawn(async move {
            let first = console.run_command("seq 99", "# ").await;
            let second = console.run_command("echo b", "# ").await;
            (first, second)
        });
        guest.takes_line().await;
        for line in [
            "seq 99\r\n",
            &"1234567890".repeat(3),
            &"1234567890".repeat(3),
            "23\r\n# ",
        ] {
            guest.says(line.as_bytes()).await;
            tokio::task::yield_now().await;
        }
        guest.takes_line().await;
        guest.says(b"echo b\r\nb\r\n# ").await;
        let (first, second) = running.await.unwrap();
        assert!(
            matches!(first, Err(Error::ConsoleOverrun { .. })),
            "{first:?}"
        );
        assert_eq!(second.unwrap(), "b\n");
    }
}
