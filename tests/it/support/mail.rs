//! A real SMTP server that keeps the mail that it takes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::PATIENCE;

/// A mail that was taken.
#[derive(Clone, Debug)]
pub struct Mail {
    pub from: String,
    pub to: Vec<String>,
    /// Headers and body, as they came.
    pub text: String,
    /// What the sender called itself.
    pub hello: String,
    /// `user:password` of who sent it.
    pub login: Option<String>,
    pub encrypted: bool,
}

impl Mail {
    pub fn header(&self, name: &str) -> String {
        let head = self.text.split("\r\n\r\n").next().expect("a head").replace("\r\n ", " ");
        let found = head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        });
        found.unwrap_or_default()
    }

    /// What is read: quoted-printable is undone, as far as ASCII needs it.
    pub fn body(&self) -> String {
        let body = self.text.split_once("\r\n\r\n").expect("a head").1;
        body.replace("=\r\n", "").replace("=3D", "=")
    }
}

/// How it behaves.
#[derive(Clone, Default)]
pub struct Manner {
    pub tls: Encryption,
    /// Addresses that it refuses for good.
    pub refused: Vec<String>,
    /// Before it says that it took a mail.
    pub delay: Duration,
}

#[derive(Clone, Default)]
pub enum Encryption {
    #[default]
    None,
    Starttls(TlsAcceptor),
    Tls(TlsAcceptor),
}

/// A running server; ends when dropped.
pub struct MailServer {
    address: SocketAddr,
    mails: Arc<Mutex<Vec<Mail>>>,
    count: watch::Sender<usize>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct Mailroom {
    manner: Manner,
    mails: Arc<Mutex<Vec<Mail>>>,
    count: watch::Sender<usize>,
}

impl MailServer {
    pub async fn start() -> Self {
        Self::with(Manner::default()).await
    }

    pub async fn with(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (mails, count) = (Arc::<Mutex<Vec<Mail>>>::default(), watch::Sender::new(0));
        let room = Mailroom { manner, mails: mails.clone(), count: count.clone() };
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(room.clone().greet(stream));
            }
        });
        Self { address, mails, count, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Arguments of a server that sends its mail here.
    pub fn arguments(&self, tls: &str) -> Vec<String> {
        let server = self.address.to_string();
        ["--smtp-server", &server, "--smtp-tls", tls, "--smtp-from", "Hawser <hawser@example.com>"]
            .map(str::to_owned)
            .into()
    }

    pub fn mails(&self) -> Vec<Mail> {
        self.mails.lock().expect("unpoisoned").clone()
    }

    pub async fn wait_for_count(&self, wanted: usize) -> Vec<Mail> {
        let mut count = self.count.subscribe();
        let waiting = count.wait_for(|count| *count >= wanted);
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(count) => drop(count.expect("the server lives")),
            Err(_) => panic!("{wanted} mails: not in time; {} came", self.mails().len()),
        }
        self.mails()
    }
}

impl Mailroom {
    async fn greet(self, stream: TcpStream) {
        let encrypted = match self.manner.tls.clone() {
            Encryption::Tls(acceptor) => {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                self.talk(stream, true, true).await;
                return;
            }
            Encryption::None => {
                self.talk(stream, true, false).await;
                return;
            }
            Encryption::Starttls(acceptor) => {
                let Some(stream) = self.talk(stream, true, false).await else { return };
                acceptor.accept(stream).await
            }
        };
        if let Ok(stream) = encrypted {
            self.talk(stream, false, true).await;
        }
    }

    /// Talks until the other side leaves, or wants to go on with TLS.
    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        greets: bool,
        encrypted: bool,
    ) -> Option<S> {
        let may_start = matches!(self.manner.tls, Encryption::Starttls(_)) && !encrypted;
        let mut stream = BufReader::new(stream);
        if greets {
            say(&mut stream, "220 ready").await?;
        }
        let (mut login, mut hello, mut from, mut to) = (None, String::new(), String::new(), Vec::new());
        loop {
            let line = hear(&mut stream).await?;
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let answer = match verb.to_ascii_uppercase().as_str() {
                "EHLO" if may_start => "250-here\r\n250 STARTTLS",
                "EHLO" => {
                    rest.clone_into(&mut hello);
                    "250-here\r\n250 AUTH PLAIN"
                }
                "STARTTLS" if may_start => {
                    say(&mut stream, "220 go ahead").await?;
                    return Some(stream.into_inner());
                }
                // What is said in the clear is refused where it could be encrypted.
                _ if may_start => "530 STARTTLS first",
                "AUTH" => {
                    let token = rest.strip_prefix("PLAIN ").expect("PLAIN, with its answer");
                    let token = String::from_utf8(STANDARD.decode(token).expect("base64")).expect("UTF-8");
                    let mut parts = token.split('\0').skip(1);
                    login = Some([parts.next(), parts.next()].map(Option::unwrap_or_default).join(":"));
                    "235 welcome"
                }
                "MAIL" => {
                    from = address(rest);
                    to.clear();
                    "250 fine"
                }
                "RCPT" if self.manner.refused.contains(&address(rest)) => "550 nobody is called so",
                "RCPT" => {
                    to.push(address(rest));
                    "250 fine"
                }
                "DATA" => {
                    say(&mut stream, "354 go on").await?;
                    let text = data(&mut stream).await?;
                    let (from, to) = (from.clone(), to.clone());
                    let (hello, login) = (hello.clone(), login.clone());
                    self.keep(Mail { from, to, text, hello, login, encrypted });
                    tokio::time::sleep(self.manner.delay).await;
                    "250 taken"
                }
                "QUIT" => {
                    say(&mut stream, "221 bye").await?;
                    return None;
                }
                _ => "502 what?",
            };
            say(&mut stream, answer).await?;
        }
    }

    fn keep(&self, mail: Mail) {
        let mut mails = self.mails.lock().expect("unpoisoned");
        mails.push(mail);
        self.count.send_replace(mails.len());
    }
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), line: &str) -> Option<()> {
    stream.write_all(format!("{line}\r\n").as_bytes()).await.ok()?;
    stream.flush().await.ok()
}

async fn hear(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut line = String::new();
    let read = stream.read_line(&mut line).await.ok()?;
    (read > 0).then(|| line.trim_end().to_owned())
}

/// Up to the lone dot, with what was doubled because of it undone.
async fn data(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line == ".\r\n" {
            return Some(text);
        }
        text.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}

/// What stands between `<` and `>`.
fn address(text: &str) -> String {
    let inside = text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inside.map(|(address, _)| address.to_owned()).unwrap_or_default()
}
