//! The client against a stub of a node: exit codes, what is sent, what is printed, and that a write
//! is never sent twice.

use super::console::Console;
use super::{Command, Exit, run_on};
use clap::Parser;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The client as the binary mounts it.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// A request as the stub saw it.
#[derive(Clone, Debug)]
struct Seen {
    /// Method and target.
    line: String,
    /// The header fields, as they came.
    headers: String,
    body: String,
}

/// What the stub does with a request.
enum Act {
    /// Answers with a status, header fields and a body.
    Answer(u16, &'static str, String),
    /// Answers, and closes the connection before all of it is said.
    CutOff(String),
    /// Closes the connection without a word.
    HangUp,
    /// Says nothing at all.
    Silence,
}

/// A node that does as it is told.
struct Stub {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Stub {
    async fn new(act: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (act, log) = (Arc::new(act), seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, act.clone(), log.clone()));
            }
        });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, act: Arc<impl Fn(&Seen) -> Act>, log: Arc<Mutex<Vec<Seen>>>) {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(buffer[..head_end].to_vec()).unwrap();
        let (line, headers) = head.split_once("\r\n").unwrap();
        let length = headers
            .lines()
            .find_map(|field| field.strip_prefix("content-length: "))
            .map_or(0, |n| n.parse().unwrap());
        while buffer.len() < head_end + length {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = String::from_utf8(buffer[head_end..head_end + length].to_vec()).unwrap();
        buffer.drain(..head_end + length);
        let line = line.trim_end_matches(" HTTP/1.1").to_owned();
        let seen = Seen { line, headers: headers.to_owned(), body };
        let act = act(&seen);
        log.lock().unwrap().push(seen);
        match act {
            Act::Answer(status, fields, body) => {
                let answer = format!(
                    "HTTP/1.1 {status} -\r\n{fields}content-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            Act::CutOff(body) => {
                let answer =
                    format!("HTTP/1.1 200 -\r\ncontent-length: {}\r\n\r\n{body}", body.len() + 100);
                stream.write_all(answer.as_bytes()).await.unwrap();
                return;
            }
            Act::HangUp => return,
            Act::Silence => std::future::pending().await,
        }
    }
}

/// What a command came to.
#[derive(Debug)]
struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

async fn run_with(arguments: &[&str], endpoints: &[&str], input: &str) -> Ran {
    run_on_console(arguments, endpoints, input, false).await
}

async fn run_on_console(
    arguments: &[&str],
    endpoints: &[&str],
    input: &str,
    terminal: bool,
) -> Ran {
    let mut all = vec!["flotilla"];
    all.extend(arguments);
    let endpoints = endpoints.join(",");
    all.splice(2..2, ["--endpoint", &endpoints]);
    let command = Cli::try_parse_from(all).unwrap_or_else(|error| panic!("{error}")).command;
    let (out, err) = (Buffer::default(), Buffer::default());
    let mut console = Console::of(
        Box::new(out.clone()),
        Box::new(err.clone()),
        Box::new(Cursor::new(input.to_owned().into_bytes())),
    );
    (console.out_is_terminal, console.err_is_terminal) = (terminal, terminal);
    let exit = run_on(command, &mut console).await;
    Ran { exit, out: out.text(), err: err.text() }
}

/// As somebody sees it who sits at a terminal.
async fn run_at_terminal(arguments: &[&str], stub: &Stub) -> Ran {
    run_on_console(arguments, &[&stub.url], "", true).await
}

async fn run(arguments: &[&str], stub: &Stub) -> Ran {
    run_with(arguments, &[&stub.url], "").await
}

/// An address that refuses connections.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn problem(status: u16, code: &str, outcome: &str, retryable: bool) -> Act {
    let body = format!(
        r#"{{"status":{status},"code":"{code}","detail":"so it is","outcome":"{outcome}","retryable":{retryable},"shard":3}}"#
    );
    Act::Answer(status, "content-type: application/problem+json\r\n", body)
}

fn written() -> Act {
    Act::Answer(204, "etag: \"7\"\r\nflotilla-shard: 3\r\nflotilla-node: 2\r\n", String::new())
}

#[test]
fn every_command_has_help_with_an_example() {
    fn check(command: &clap::Command, path: &str) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name());
            let help =
                sub.get_after_help().unwrap_or_else(|| panic!("{path} has no example")).to_string();
            assert!(
                help.contains(&format!("flotilla{path}")) || sub.has_subcommands(),
                "{path}: {help}"
            );
            check(sub, &path);
        }
    }
    let mut command = <Cli as clap::CommandFactory>::command();
    command.build();
    command.clone().debug_assert();
    check(&command, "");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    for arguments in [
        &["kv", "put", "k"][..],
        &["kv", "put", "k", "v", "--file", "f"],
        &["kv", "put", "k", "v", "--if-match", "abc"],
        &["kv", "put", "k", "v", "--if-match", "1", "--if-none-match"],
        &["kv", "delete"],
        &["kv", "delete", "k", "--prefix", "a"],
        &["kv", "delete", "--prefix", "a", "--start", "b"],
        &["kv", "get", "k", "--consistency", "strong"],
        &["kv", "get", "k", "-e", "https://a:1"],
        &["shard", "transfer", "3"],
        &["shard", "show", "three"],
        &["shard", "move", "3"],
    ] {
        let mut all = vec!["flotilla"];
        all.extend(arguments);
        let error =
            Cli::try_parse_from(all).err().unwrap_or_else(|| panic!("{arguments:?} was taken"));
        assert_eq!(error.exit_code(), 2, "{arguments:?}");
    }
}

#[tokio::test]
async fn a_put_carries_value_and_condition_and_prints_the_revision() {
    let stub = Stub::new(|_| written()).await;
    let ran = run(&["kv", "put", "a b/ä", "hello", "--if-match", "5"], &stub).await;
    assert_eq!((ran.exit, ran.out.as_str(), ran.err.as_str()), (Exit::Done, "revision 7\n", ""));
    let seen = stub.seen();
    assert_eq!(
        (seen[0].line.as_str(), seen[0].body.as_str()),
        ("PUT /v1/kv/a%20b%2F%C3%A4", "hello")
    );
    assert!(seen[0].headers.contains("if-match: \"5\"\r\n"), "{}", seen[0].headers);

    let ran = run_with(
        &["kv", "put", "k%00", "-", "--escaped", "--if-none-match", "--json"],
        &[&stub.url],
        "from stdin",
    )
    .await;
    assert_eq!(ran.out, "{\"key\":\"k\\u0000\",\"node\":2,\"revision\":7,\"shard\":3}\n");
    let seen = stub.seen();
    assert_eq!((seen[1].line.as_str(), seen[1].body.as_str()), ("PUT /v1/kv/k%00", "from stdin"));
    assert!(seen[1].headers.contains("if-none-match: *\r\n"));
}

#[tokio::test]
async fn a_get_prints_the_bytes_and_nothing_else() {
    let stub =
        Stub::new(|_| Act::Answer(200, "etag: \"7\"\r\nflotilla-age: 0.250\r\n", "va\nlue".into()))
            .await;
    let ran =
        run(&["kv", "get", "k", "--consistency", "stale", "--max-staleness", "2s"], &stub).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "va\nlue"));
    assert_eq!(stub.seen()[0].line, "GET /v1/kv/k?consistency=stale&max_staleness=2s");
    let ran = run(&["kv", "get", "k", "--json"], &stub).await;
    assert_eq!(
        ran.out,
        "{\"age_seconds\":0.25,\"key\":\"k\",\"revision\":7,\"value\":\"va\\nlue\"}\n"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    let ran = run(&["kv", "get", "k", "-o", file.path().to_str().unwrap()], &stub).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, ""));
    assert_eq!(std::fs::read(file.path()).unwrap(), b"va\nlue");
}

#[tokio::test]
async fn a_no_is_one_line_with_code_outcome_and_cure_and_exits_1() {
    let stub = Stub::new(|_| problem(412, "precondition_failed", "not_applied", false)).await;
    let ran = run(&["kv", "put", "k", "v", "--if-none-match"], &stub).await;
    assert_eq!(ran.exit, Exit::Refused);
    assert!(
        ran.err.starts_with(
            "error: so it is (precondition_failed, HTTP 412, nothing was written, shard 3)\n"
        ),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("→ look at what is there now"), "{}", ran.err);
    let ran = run(&["kv", "put", "k", "v", "--if-none-match", "--json"], &stub).await;
    let json: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(
        (json["code"].as_str(), json["outcome"].as_str()),
        (Some("precondition_failed"), Some("not_applied"))
    );

    let stub = Stub::new(|_| problem(504, "unknown_outcome", "unknown", false)).await;
    let ran = run(&["kv", "put", "k", "v"], &stub).await;
    assert_eq!(ran.exit, Exit::Refused);
    assert!(
        ran.err.contains("outcome unknown") && ran.err.contains("may or may not have been written"),
        "{}",
        ran.err
    );
    assert_eq!(stub.seen().len(), 1, "a write was sent twice");
    let ran = run(&["kv", "get", "k"], &stub).await;
    assert!(!ran.err.contains("written"), "a read speaks of writing: {}", ran.err);
}

#[tokio::test]
async fn an_answer_of_somebody_else_is_no_success() {
    let stub = Stub::new(|seen| match seen.line.as_str() {
        "PUT /v1/kv/k" => Act::Answer(502, "", "<html>bad gateway</html>".into()),
        _ => Act::Answer(200, "", "<html>hello</html>".into()),
    })
    .await;
    let ran = run(&["kv", "put", "k", "v"], &stub).await;
    assert_eq!(ran.exit, Exit::Refused);
    assert!(
        ran.err.contains("HTTP 502 without a problem") && ran.err.contains("outcome unknown"),
        "{}",
        ran.err
    );
    for arguments in [
        &["node", "list"][..],
        &["shard", "show", "3"],
        &["kv", "scan"],
        &["kv", "delete", "--prefix", "a"],
    ] {
        let ran = run(arguments, &stub).await;
        assert_eq!(ran.exit, Exit::Refused, "{arguments:?}");
        assert!(ran.err.contains("is that a Flotilla node?"), "{arguments:?}: {}", ran.err);
    }
}

#[tokio::test]
async fn nobody_there_exits_3_and_says_that_nothing_was_written() {
    let (one, two) = (nobody().await, nobody().await);
    let ran = run_with(&["kv", "put", "k", "v"], &[&one, &two], "").await;
    assert_eq!(ran.exit, Exit::Unreachable);
    assert!(
        ran.err.contains(&one) && ran.err.contains(&two) && ran.err.contains("nothing was written"),
        "{}",
        ran.err
    );
    let ran = run_with(&["kv", "get", "k", "--json"], &[&one], "").await;
    let json: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(
        (ran.exit, &json["code"], &json["outcome"]),
        (Exit::Unreachable, &"unreachable".into(), &serde_json::Value::Null)
    );
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over() {
    let stub = Stub::new(|_| written()).await;
    let ran = run_with(&["kv", "put", "k", "v"], &[&nobody().await, &stub.url], "").await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "revision 7\n"));
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn a_write_that_was_sent_is_never_sent_again_and_a_read_is() {
    for silent in [false, true] {
        let broken = Stub::new(move |_| if silent { Act::Silence } else { Act::HangUp }).await;
        let good = Stub::new(|seen| {
            if seen.line.starts_with("GET") {
                Act::Answer(200, "", "value".into())
            } else {
                written()
            }
        })
        .await;
        let endpoints = [broken.url.as_str(), good.url.as_str()];
        for write in [
            &["kv", "put", "k", "v"][..],
            &["kv", "delete", "k"],
            &["kv", "delete", "--prefix", "a"],
            &["shard", "transfer", "3", "--to", "2"],
        ] {
            let mut arguments = write.to_vec();
            arguments.extend(["--timeout", "300ms"]);
            let ran = run_with(&arguments, &endpoints, "").await;
            assert_eq!(ran.exit, Exit::Unreachable, "{write:?}");
            assert!(ran.err.contains("outcome unknown"), "{write:?}: {}", ran.err);
        }
        assert_eq!((broken.seen().len(), good.seen().len()), (4, 0), "a write was sent twice");
        let ran = run_with(&["kv", "get", "k", "--timeout", "300ms"], &endpoints, "").await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "value"));
    }
}

#[tokio::test]
async fn a_scan_prints_a_line_per_key_and_follows_the_cursor() {
    let stub = Stub::new(|seen| {
        let lines = match seen.line.as_str() {
            "GET /v1/kv?prefix=a" => concat!(
                r#"{"key":"a1","value":"one","revision":1}"#, "\n",
                r#"{"key":"a2","value_b64":"CQD/","revision":2}"#, "\n",
                r#"{"cursor":"C 1","count":2,"problem":{"status":503,"code":"no_leader","outcome":"not_applied","retryable":true}}"#, "\n",
            ),
            "GET /v1/kv?cursor=C%201" => concat!(r#"{"key":"a%3","value":"","revision":3}"#, "\n", r#"{"complete":true,"count":1}"#, "\n"),
            other => panic!("{other}"),
        };
        Act::Answer(200, "", lines.into())
    })
    .await;
    let ran = run(&["kv", "scan", "--prefix", "a", "--limit", "0"], &stub).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "a1\tone\na2\t%09%00%FF\na%3\t\n"));
    assert!(ran.err.contains("taken up again once"), "{}", ran.err);
    assert!(stub.seen()[0].headers.contains("accept: application/x-ndjson\r\n"));
    let ran = run(&["kv", "scan", "--prefix", "a", "--limit", "0", "--escaped"], &stub).await;
    assert!(ran.out.ends_with("a%253\t\n"), "{}", ran.out);
    let ran = run(&["kv", "scan", "--prefix", "a", "--limit", "0", "--json"], &stub).await;
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!((lines.len(), lines[1]), (3, r#"{"key":"a2","value_b64":"CQD/","revision":2}"#));
    assert!(ran.err.contains("taken up again once"), "{}", ran.err);
}

#[tokio::test]
async fn a_scan_that_was_limited_says_so_and_one_that_was_cut_off_fails() {
    let stub = Stub::new(|seen| {
        assert_eq!(seen.line, "GET /v1/kv?reverse=true&keys_only=true&limit=1");
        Act::Answer(
            200,
            "",
            "{\"key\":\"z\",\"revision\":1}\n{\"cursor\":\"x\",\"count\":1}\n".into(),
        )
    })
    .await;
    let ran = run(&["kv", "scan", "--reverse", "--keys-only", "--limit", "1"], &stub).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "z\n"));
    assert!(ran.err.contains("there are more keys"), "{}", ran.err);

    let stub = Stub::new(|_| {
        Act::Answer(200, "", "{\"key\":\"a\",\"value\":\"1\",\"revision\":1}\n".into())
    })
    .await;
    let ran = run(&["kv", "scan"], &stub).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, "a\t1\n"));
    assert!(ran.err.contains("its last line is missing"), "{}", ran.err);
}

/// A server ends the connection of a reader that paused for long. What was read is not read again,
/// nor is anything left out.
#[tokio::test]
async fn a_stream_that_was_lost_goes_on_behind_the_last_key() {
    let item = |key: &str| format!("{{\"key\":\"{key}\",\"value\":\"v\",\"revision\":1}}\n");
    let stub = Stub::new(move |seen| match seen.line.as_str() {
        // The third line breaks off in the middle.
        "GET /v1/kv?prefix=a" => Act::CutOff(format!("{}{}{{\"key\":\"a3", item("a1"), item("a2"))),
        "GET /v1/kv?start=a2%00&end=b" => Act::CutOff(item("a3")),
        "GET /v1/kv?start=a3%00&end=b" => {
            Act::Answer(200, "", format!("{}{{\"complete\":true,\"count\":1}}\n", item("a4")))
        }
        other => panic!("{other}"),
    })
    .await;
    let ran = run(&["kv", "export", "--prefix", "a"], &stub).await;
    let all: String = ["a1", "a2", "a3", "a4"].map(item).concat();
    assert_eq!(
        (ran.exit, ran.out),
        (Exit::Done, format!("{all}{{\"complete\":true,\"count\":4}}\n"))
    );
    assert!(
        ran.err.contains("taken up again 2 times") && ran.err.contains("4 keys exported"),
        "{}",
        ran.err
    );
    let ran = run(&["kv", "export", "--prefix", "a", "--json"], &stub).await;
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, "{\"exported\":4,\"seams\":2}\n"));

    // Backwards, up to a range of which nothing can be left; and one that never gets further gives
    // up.
    let stub = Stub::new(move |seen| match seen.line.as_str() {
        "GET /v1/kv?start=b&end=c%00&reverse=true&keys_only=true" => Act::CutOff(item("c")),
        "GET /v1/kv?start=b&end=c&reverse=true&keys_only=true" => Act::CutOff(item("b")),
        "GET /v1/kv?prefix=x" => Act::CutOff(String::new()),
        other => panic!("{other}"),
    })
    .await;
    let arguments = [
        "kv",
        "scan",
        "--start",
        "b",
        "--end",
        "c%00",
        "--escaped",
        "--reverse",
        "--keys-only",
        "--limit",
        "0",
    ];
    let ran = run(&arguments, &stub).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "c\tv\nb\tv\n"), "{}", ran.err);
    assert!(ran.err.contains("taken up again 2 times"), "{}", ran.err);
    let ran = run(&["kv", "export", "--prefix", "x"], &stub).await;
    assert_eq!(ran.exit, Exit::Unreachable, "{}", ran.err);
}

#[tokio::test]
async fn a_range_delete_prints_the_count() {
    let stub = Stub::new(|_| Act::Answer(200, "", r#"{"count":12}"#.into())).await;
    let ran = run(&["kv", "delete", "--prefix="], &stub).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "12 keys deleted\n"));
    assert_eq!(stub.seen()[0].line, "DELETE /v1/kv?prefix=");
}

#[tokio::test]
async fn an_export_is_what_an_import_takes() {
    let items = "{\"key\":\"a\",\"value\":\"1\",\"revision\":4}\n\
                 {\"key_b64\":\"/w==\",\"value_b64\":\"/w==\",\"revision\":5}\n";
    let stub = Stub::new(move |seen| match seen.line.as_str() {
        "GET /v1/kv" => Act::Answer(200, "", format!("{items}{{\"complete\":true,\"count\":2}}\n")),
        _ => Act::Answer(
            200,
            "",
            r#"{"results":[{"status":204,"revision":1},{"status":204,"revision":2}]}"#.into(),
        ),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.ndjson");
    let ran = run(&["kv", "export", file.to_str().unwrap()], &stub).await;
    assert_eq!(
        (ran.exit, ran.out.as_str(), ran.err.as_str()),
        (Exit::Done, "", "2 keys exported\n")
    );
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        format!("{items}{{\"complete\":true,\"count\":2}}\n")
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the partial file stays");

    let ran = run(&["kv", "import", file.to_str().unwrap()], &stub).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    assert_eq!(ran.err, "2 written, 0 failed (not written), 0 unknown (may have been written)\n");
    let ops = r#"{"ops":[{"put":{"key":"a","value":"1"}},{"put":{"key_b64":"/w==","value_b64":"/w=="}}]}"#;
    assert_eq!(stub.seen().last().unwrap().body, ops);
}

#[tokio::test]
async fn an_import_counts_what_failed_and_repeats_only_what_was_certainly_not_written() {
    let stub = Stub::new(|seen| {
        let again = r#"{"status":503,"code":"no_leader","detail":"later",
            "outcome":"not_applied","retryable":true}"#;
        let unknown = r#"{"status":504,"code":"unknown_outcome","detail":"who knows",
            "outcome":"unknown","retryable":false}"#;
        let large = r#"{"status":413,"code":"value_too_large","detail":"too large",
            "outcome":"not_applied","retryable":false}"#;
        let body = if seen.body.contains("\"a\"") {
            format!(r#"{{"results":[{{"status":204,"revision":1}},{again},{unknown},{large}]}}"#)
        } else {
            r#"{"results":[{"status":204,"revision":2}]}"#.into()
        };
        Act::Answer(200, "", body)
    })
    .await;
    let input: String =
        ["a", "b", "c", "d"].map(|key| format!("{{\"key\":\"{key}\",\"value\":\"v\"}}\n")).concat();
    let ran = run_with(&["kv", "import", "-", "--json"], &[&stub.url], &input).await;
    assert_eq!(
        (ran.exit, ran.out.as_str()),
        (Exit::Refused, "{\"written\":2,\"failed\":1,\"unknown\":1}\n")
    );
    assert!(
        ran.err.contains(r#""line":3"#) && ran.err.contains(r#""outcome":"unknown""#),
        "{}",
        ran.err
    );
    let seen = stub.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(
        seen[1].body, r#"{"ops":[{"put":{"key":"b","value":"v"}}]}"#,
        "more than the one was repeated"
    );
}

#[tokio::test]
async fn an_import_never_repeats_a_request_that_was_lost() {
    let stub = Stub::new(|_| Act::HangUp).await;
    let ran =
        run_with(&["kv", "import", "-"], &[&stub.url], "{\"key\":\"a\",\"value\":\"v\"}\n").await;
    assert_eq!(ran.exit, Exit::Unreachable);
    assert!(ran.err.contains("0 written, 0 failed (not written), 1 unknown"), "{}", ran.err);
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn a_bad_line_stops_an_import_behind_what_is_good() {
    let stub =
        Stub::new(|_| Act::Answer(200, "", r#"{"results":[{"status":204,"revision":1}]}"#.into()))
            .await;
    for (bad, expected) in [
        ("not json", "line 2: "),
        (r#"{"key":"b"}"#, "line 2: it has neither value nor value_b64"),
        (r#"{"cursor":"x","count":1}"#, "line 2: the export that made this file was not complete"),
        (r#"{"complete":true,"count":5}"#, "line 2: it says 5 items, and 1 are there"),
        (r#"{"key":"b","val"#, "line 2: "),
    ] {
        let input = format!(
            "{{\"key\":\"a\",\"value\":\"v\"}}\n{bad}\n{{\"key\":\"c\",\"value\":\"v\"}}\n"
        );
        let ran = run_with(&["kv", "import", "-"], &[&stub.url], &input).await;
        assert_eq!(ran.exit, Exit::Refused, "{bad}");
        assert!(
            ran.err.contains(expected) && ran.err.contains("1 written, 0 failed"),
            "{bad}: {}",
            ran.err
        );
    }
}

/// A file that was cut off anywhere is no success, and says so; one made by hand, without
/// revisions, needs no end.
#[tokio::test]
async fn an_export_that_was_cut_off_is_no_success() {
    let stub = Stub::new(|seen| {
        let puts = seen.body.matches("\"put\"").count();
        Act::Answer(
            200,
            "",
            format!(
                r#"{{"results":[{}]}}"#,
                vec![r#"{"status":204,"revision":1}"#; puts].join(",")
            ),
        )
    })
    .await;
    let lines = [
        "{\"key\":\"a\",\"value\":\"1\",\"revision\":4}\n",
        "{\"key\":\"b\",\"value\":\"2\",\"revision\":5}\n",
    ]
    .concat();
    let whole = format!("{lines}{{\"complete\":true,\"count\":2}}\n");
    // Behind the bracket that closes the last line only the end of that line is missing, and
    // nothing of it.
    let closed = whole.len() - 1;
    for cut in 0..closed {
        let ran = run_with(&["kv", "import", "-"], &[&stub.url], &whole[..cut]).await;
        assert_eq!(ran.exit, Exit::Refused, "cut at {cut}: {}", ran.err);
        let said = ["cut off", "nothing to import"].iter().any(|word| ran.err.contains(word));
        assert!(said && ran.err.contains("take a whole one"), "cut at {cut}: {}", ran.err);
    }
    for taken in [
        &whole[..],
        &whole[..closed],
        "{\"key\":\"a\",\"value\":\"1\"}",
        &format!("\u{feff}{}", whole.replace('\n', "\r\n")),
    ] {
        let ran = run_with(&["kv", "import", "-"], &[&stub.url], taken).await;
        assert_eq!(ran.exit, Exit::Done, "{taken:?}: {}", ran.err);
    }
    for some in ["", &lines] {
        let ran = run_with(&["kv", "import", "-", "--incomplete"], &[&stub.url], some).await;
        assert_eq!(ran.exit, Exit::Done, "{some:?}: {}", ran.err);
    }
}

/// A server that exports one key, and breaks off before the end where it is told to.
async fn one_key(whole: bool) -> Stub {
    let end = if whole { "{\"complete\":true,\"count\":1}\n" } else { "" };
    Stub::new(move |_| {
        Act::Answer(200, "", format!("{{\"key\":\"a\",\"value\":\"1\",\"revision\":4}}\n{end}"))
    })
    .await
}

#[tokio::test]
async fn an_export_replaces_a_file_by_a_whole_one_and_nothing_but_a_file() {
    let (good, broken) = (one_key(true).await, one_key(false).await);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let export = async |to: &str, stub: &Stub| run(&["kv", "export", to], stub).await;
    let lines = |name: &str| std::fs::read_to_string(path(name)).unwrap().lines().count();

    std::fs::write(path("old"), "old").unwrap();
    assert_eq!(export(&path("old"), &broken).await.exit, Exit::Refused);
    assert_eq!(
        std::fs::read_to_string(path("old")).unwrap(),
        "old",
        "a broken export replaced a file"
    );
    // Its rights are those of the file that it replaces, whatever the umask takes from a new one.
    for mode in [0o666, 0o600, 0o640] {
        std::fs::set_permissions(path("old"), std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(export(&path("old"), &good).await.exit, Exit::Done);
        assert_eq!(std::fs::metadata(path("old")).unwrap().permissions().mode() & 0o777, mode);
    }
    // Links stay: to a file, to another link, to nothing yet.
    std::os::unix::fs::symlink("old", path("link")).unwrap();
    std::os::unix::fs::symlink("link", path("links")).unwrap();
    std::os::unix::fs::symlink(path("new"), path("dangling")).unwrap();
    for (link, file) in [("links", "old"), ("dangling", "new")] {
        let ran = export(&path(link), &good).await;
        assert_eq!(ran.exit, Exit::Done, "{link}: {}", ran.err);
        assert!(std::fs::symlink_metadata(path(link)).unwrap().is_symlink(), "{link} was replaced");
        assert_eq!(lines(file), 2, "{link}");
    }
    std::os::unix::fs::symlink("round", path("round")).unwrap();
    assert!(export(&path("round"), &good).await.err.contains("circle"));
    // What somebody put where the unfinished file once was written is not followed.
    std::fs::write(path("victim"), "precious").unwrap();
    std::os::unix::fs::symlink(path("victim"), path("old.partial")).unwrap();
    assert_eq!(export(&path("old"), &good).await.exit, Exit::Done);
    assert_eq!(std::fs::read_to_string(path("victim")).unwrap(), "precious");

    let status = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(status.success());
    let pipe = path("pipe");
    let reader = std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap());
    assert_eq!(export(&path("pipe"), &good).await.exit, Exit::Done);
    assert_eq!(reader.join().unwrap().lines().count(), 2);
    // A file that somebody holds open, as a shell does for `/dev/stdout`: behind what is in it.
    std::fs::write(path("held"), "head\n").unwrap();
    let held = std::fs::File::options().append(true).open(path("held")).unwrap();
    let by_number = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    assert_eq!(export(&by_number, &good).await.exit, Exit::Done);
    assert_eq!(lines("held"), 3);
    // The device itself must stay out of reach of a mistake here, so it is named by way of a link.
    std::os::unix::fs::symlink("/dev/full", path("full")).unwrap();
    let ran = export(&path("full"), &good).await;
    assert!(
        ran.exit == Exit::Refused
            && ran.err.contains("can't write")
            && ran.err.contains("No space"),
        "{ran:?}"
    );
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(
        &std::fs::metadata("/dev/full").unwrap().file_type()
    ));
    assert!(export(folder.path().to_str().unwrap(), &good).await.err.contains("is a folder"));
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|name| !name.to_str().unwrap().starts_with('.')),
        "unfinished files stay: {left:?}"
    );
}

/// What does something to a terminal is shown to one, and goes into a pipe as it is.
#[tokio::test]
async fn nothing_that_was_stored_does_anything_to_a_terminal() {
    const HOSTILE: &str = "x\u{1b}[31m\u{9b}2J\u{202e}y\n";
    let stub = Stub::new(|seen| {
        let item = serde_json::json!({ "key": HOSTILE, "value": HOSTILE, "revision": 1 });
        match &*seen.line {
            "GET /v1/kv" | "GET /v1/kv?limit=1000" => {
                Act::Answer(200, "", format!("{item}\n{{\"complete\":true,\"count\":1}}\n"))
            }
            "GET /v1/kv/gone" => {
                let body = serde_json::json!({
                    "status": 404, "code": "no_such_key", "detail": HOSTILE,
                    "outcome": "not_applied",
                });
                Act::Answer(404, "", body.to_string())
            }
            _ => Act::Answer(200, "etag: \"7\"\r\n", HOSTILE.into()),
        }
    })
    .await;
    let harmless = |text: &str| text.chars().all(|c| c == '\n' || !super::text::is_unseen(c));
    for arguments in [
        &["kv", "get", "k"][..],
        &["kv", "get", "k", "--json"],
        &["kv", "get", "gone"],
        &["kv", "get", "gone", "--json"],
        &["kv", "scan"],
        &["kv", "scan", "--keys-only"],
        &["kv", "scan", "--json"],
        &["kv", "export"],
        &["kv", "watch"],
        &["node", "drain", "2"],
    ] {
        let ran = run_at_terminal(arguments, &stub).await;
        assert!(harmless(&ran.out) && harmless(&ran.err), "{arguments:?}: {ran:?}");
        assert!(ran.out.contains('x') || ran.err.contains('x'), "{arguments:?}: {ran:?}");
    }
    let ran = run_at_terminal(&["kv", "get", "k"], &stub).await;
    assert_eq!(ran.out, "x%1B[31m%C2%9B2J%E2%80%AEy\n");
    assert!(ran.err.contains("--output FILE or a pipe"), "{}", ran.err);
    let ran = run_at_terminal(&["kv", "get", "k", "--json"], &stub).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["value"], HOSTILE);
    // Into a pipe: the bytes.
    assert_eq!(run(&["kv", "get", "k"], &stub).await.out, HOSTILE);
}

#[tokio::test]
async fn times_and_lists_are_taken_as_people_write_them() {
    let stub = Stub::new(|_| written()).await;
    for time in ["5", "0.5", "5s", "1m 30s", " 2s "] {
        let ran = run(&["kv", "put", "k", "v", "--timeout", time], &stub).await;
        assert_eq!(ran.exit, Exit::Done, "{time}: {}", ran.err);
    }
    for bad in ["0", "0s", "-1", "soon", "5 parsecs", "1e999", "NaN"] {
        assert!(
            Cli::try_parse_from(["flotilla", "kv", "get", "k", &format!("--timeout={bad}")])
                .is_err(),
            "{bad}"
        );
    }
    let nobody = nobody().await;
    for list in [
        format!("{nobody}, {}", stub.url),
        format!("{nobody} {}", stub.url),
        format!(" {} ,", stub.url),
    ] {
        let ran = run_with(&["kv", "put", "k", "v"], &[&list], "").await;
        assert_eq!(ran.exit, Exit::Done, "{list:?}: {}", ran.err);
    }
    run(&["shard", "move", "3", "--voters", "1, 2,4"], &stub).await;
    assert_eq!(stub.seen().last().unwrap().body, r#"{"learners":[],"voters":[1,2,4]}"#);
}

/// A shard as the server shows it.
fn shard(id: u64) -> String {
    let epoch = serde_json::to_string(&flotilla_router::Epoch { membership: 1, range: 2 }).unwrap();
    format!(
        r#"{{"id":{id},"start":"","end_b64":"/w==","epoch":{epoch},"leader":2,"term":5,"committed":9,"applied":9,"last":9,
        "log_first":2,"log_bytes":2048,"size_bytes":null,"writes_per_second":0.0,"reads_per_second":null,"awake":true,"local":null,
        "replicas":[{{"node":1,"replica":11,"role":"voter","state":"follower","match":8,"next":9,"lag":1,"recent_active":true,"progress":"replicate"}},
        {{"node":2,"replica":12,"role":"voter","state":"leader","match":9,"next":10,"lag":0,"recent_active":true,"progress":"replicate"}}]}}"#
    )
}

#[tokio::test]
async fn shards_are_listed_over_all_pages() {
    let stub = Stub::new(|seen| match seen.line.as_str() {
        "GET /v1/admin/shards?limit=1000" => Act::Answer(
            200,
            "",
            format!(r#"{{"shards":[{},{}],"cursor":"2"}}"#, shard(1), shard(2)),
        ),
        "GET /v1/admin/shards?limit=1000&cursor=2" => {
            Act::Answer(200, "", format!(r#"{{"shards":[{}],"cursor":null}}"#, shard(3)))
        }
        other => panic!("{other}"),
    })
    .await;
    let ran = run(&["shard", "list"], &stub).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    let rows: Vec<Vec<&str>> =
        ran.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..6], ["SHARD", "START", "END", "EPOCH", "LEADER", "REPLICAS"]);
    assert_eq!(rows[1][..4], ["1", "(meta)", "-", "1.2"], "the meta shard's keys are no user's");
    assert_eq!(
        rows[2],
        ["2", "(first)", "%FF", "1.2", "2", "1,2", "5", "9", "2.00", "KiB", "-", "awake"]
    );
    assert_eq!((rows.len(), rows[3][0]), (4, "3"));
    let ran = run(&["shard", "list", "--json"], &stub).await;
    let ids: Vec<_> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].clone())
        .collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[tokio::test]
async fn a_shard_an_explanation_and_a_transfer_are_shown() {
    let stub = Stub::new(|seen| {
        let quorum = r#"{"voters":2,"needed":2,"up":2}"#;
        let body = match seen.line.as_str() {
            "GET /v1/admin/shards/3?hash=1" => shard(3),
            "GET /v1/admin/explain/a%2F" => {
                format!(
                    r#"{{"key":"a/","shard":{},"answered_by":1,"why":["Key a/ lies in shard 3.","Node 2 leads it."]}}"#,
                    shard(3)
                )
            }
            "POST /v1/admin/shards/3/leader?dry_run=1" => {
                assert!(seen.headers.contains("if-match: \"1.2\"\r\n") && seen.body == r#"{"node":1}"#, "{seen:?}");
                format!(
                    r#"{{"dry_run":true,"leader_before":2,"leader_after":1,"quorum_before":{quorum},"quorum_after":{quorum},{}"#,
                    &shard(3)[1..]
                )
            }
            other => panic!("{other}"),
        };
        Act::Answer(200, "", body)
    })
    .await;
    let ran = run(&["shard", "show", "3", "--hash"], &stub).await;
    assert!(ran.out.contains("shard 3 · epoch 1.2 · keys from (first) to %FF"), "{}", ran.out);
    let follower = ran
        .out
        .lines()
        .find(|line| line.starts_with("1 "))
        .unwrap_or_else(|| panic!("{}", ran.out));
    assert_eq!(
        follower.split_whitespace().collect::<Vec<_>>(),
        ["1", "11", "voter", "follower", "8", "9", "1", "yes", "replicate"]
    );
    let ran = run(&["shard", "explain", "a/"], &stub).await;
    assert!(
        ran.out.starts_with("Key a/ lies in shard 3.\nNode 2 leads it.\n\nshard 3 "),
        "{}",
        ran.out
    );
    let ran =
        run(&["shard", "transfer", "3", "--to", "1", "--dry-run", "--if-match", "1.2"], &stub)
            .await;
    assert!(
        ran.out.starts_with("shard 3: leadership would go from node 2 to node 1\n"),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn nodes_are_listed_and_shown_and_what_nobody_knows_is_a_dash() {
    let stub = Stub::new(|seen| {
        let node = r#"{"id":2,"address":"127.0.0.1:7102","http":null,"state":"down","incarnation":4,"version":null,"replicas":8,"leaders":0,
            "disk":{"used_bytes":1048576,"free_bytes":1073741824,"capacity_bytes":2147483648},"apply_lag":null,"rtt_seconds":0.00025,"uptime_seconds":61.9}"#;
        Act::Answer(200, "", if seen.line.ends_with("nodes") { format!(r#"{{"nodes":[{node}]}}"#) } else { node.into() })
    })
    .await;
    let ran = run(&["node", "list"], &stub).await;
    let row: Vec<&str> =
        ran.out.lines().nth(1).unwrap_or_else(|| panic!("{ran:?}")).split_whitespace().collect();
    assert_eq!(
        row,
        [
            "2",
            "down",
            "127.0.0.1:7102",
            "-",
            "0",
            "8",
            "-",
            "0.25",
            "ms",
            "1.00",
            "MiB",
            "1.00",
            "GiB",
            "1m",
            "1s"
        ]
    );
    let ran = run(&["node", "show", "2"], &stub).await;
    assert!(
        ran.out.contains("incarnation  4\n") && ran.out.contains("version      -\n"),
        "{}",
        ran.out
    );
    let ran = run(&["node", "list", "--json"], &stub).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(ran.out.trim()).unwrap()["state"], "down");
}

#[tokio::test]
async fn what_the_server_does_not_have_yet_is_asked_for_and_exits_1() {
    let stub = Stub::new(|_| problem(501, "not_implemented", "not_applied", false)).await;
    for (arguments, line) in [
        (&["kv", "watch", "--prefix", "a", "--since", "3"][..], "GET /v1/watch?prefix=a&since=3"),
        (&["shard", "split", "3", "--at", "m"], "POST /v1/admin/shards/3/split"),
        (&["shard", "merge", "3"], "POST /v1/admin/shards/3/merge"),
        (&["shard", "move", "3", "--voters", "1,2,4"], "PUT /v1/admin/shards/3/replicas"),
        (&["node", "drain", "2"], "POST /v1/admin/nodes/2/drain"),
        (&["node", "remove", "2"], "DELETE /v1/admin/nodes/2"),
    ] {
        let ran = run(arguments, &stub).await;
        assert_eq!(ran.exit, Exit::Refused, "{arguments:?}");
        assert!(
            ran.err.contains("not_implemented") && ran.err.contains("does not have it"),
            "{arguments:?}: {}",
            ran.err
        );
        assert_eq!(stub.seen().last().unwrap().line, line);
    }
    let bodies: Vec<String> = stub.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(
        (bodies[1].as_str(), bodies[3].as_str()),
        (r#"{"key":"m"}"#, r#"{"learners":[],"voters":[1,2,4]}"#)
    );
}
