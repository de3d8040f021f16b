//! A real browser, driven by WebDriver (W3C recommendation, JSON over HTTP).

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    http,
    process::{Process, wait_until},
};

/// Longest wait for the driver to listen, and for any command; a browser's first start on a busy machine takes long.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the browser is started with: no window, the sandbox off because it refuses root, and no use of /dev/shm, which is small
/// in containers.
const ARGUMENTS: [&str; 5] =
    ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"];

/// A browser with one window.
pub(crate) struct Browser {
    driver: Process,
    address: SocketAddr,
    session: String,
}

impl Browser {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).env("HOME", directory);
        let driver = Process::start("chromedriver", &mut command, &directory.join("chromedriver.log"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_until("chromedriver listens", DEADLINE, || {
            Ok(http::request(address, "GET", "/status", &[]).is_ok().then_some(()))
        })?;
        let profile = format!("--user-data-dir={}", directory.join("profile").display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([profile.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let mut browser = Self { driver, address, session: String::new() };
        let session = browser.command("POST", "/session", &wanted).context("the browser does not start")?;
        browser.session = session["sessionId"].as_str().context("no session")?.to_owned();
        Ok(browser)
    }

    /// Opens a page.
    pub(crate) fn open(&self, url: &str) -> Result<()> {
        self.send("/url", &json!({ "url": url })).map(drop)
    }

    /// What a script in the page returns.
    pub(crate) fn script(&self, script: &str) -> Result<Value> {
        self.send("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until a script in the page returns something that is neither null nor false.
    pub(crate) fn wait(&self, what: &str, script: &str) -> Result<Value> {
        wait_until(what, DEADLINE, || {
            let value = self.script(script)?;
            Ok((!value.is_null() && value != Value::Bool(false)).then_some(value))
        })
    }

    /// Presses a key, a character or one of WebDriver's code points for others.
    pub(crate) fn press(&self, key: &str) -> Result<()> {
        let actions = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        self.send("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }))
            .map(drop)
    }

    /// Has pages believe that people want them dark (Chrome `DevTools` Protocol, `Emulation.setEmulatedMedia`).
    pub(crate) fn emulate_dark(&self) -> Result<()> {
        let features = json!([{ "name": "prefers-color-scheme", "value": "dark" }]);
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.send("/goog/cdp/execute", &command).map(drop)
    }

    /// Problems that the browser's console showed since the last call.
    pub(crate) fn problems(&self) -> Result<Vec<String>> {
        let log = self.send("/se/log", &json!({ "type": "browser" }))?;
        let entries = log.as_array().into_iter().flatten();
        let severe = entries.filter(|entry| entry["level"] == "SEVERE");
        let messages = severe.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned());
        // The browser's own first page, which is open before any other, complains that there is no network.
        Ok(messages.filter(|message| !message.starts_with("chrome://")).collect())
    }

    /// Writes what is seen to a file, PNG, and gives its size.
    pub(crate) fn screenshot(&self, file: &Path) -> Result<usize> {
        let shot = self.command("GET", &format!("/session/{}/screenshot", self.session), &Value::Null)?;
        let bytes = STANDARD.decode(shot.as_str().context("no picture")?)?;
        fs::write(file, &bytes)?;
        Ok(bytes.len())
    }

    fn send(&self, path: &str, body: &Value) -> Result<Value> {
        self.command("POST", &format!("/session/{}{path}", self.session), body)
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = http::request_with_body(
            self.address,
            method,
            path,
            &[("Content-Type", "application/json")],
            body.as_bytes(),
        )?;
        let status = response.status;
        let answer: Value = serde_json::from_slice(&response.bytes()?)?;
        ensure!(status == 200, "the browser answered {status}: {}", answer["value"]["message"]);
        Ok(answer["value"].clone())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser with the session; if it does not answer, both are killed with its process group.
        let _ = self.command("DELETE", &format!("/session/{}", self.session), &Value::Null);
        self.driver.kill();
    }
}
