//! `preheat.schedule`: lists of images that are warmed at certain times.

use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr, time::Duration};

use croner::{Cron, CronPattern};
use eagle_registry::ImageReference;
use futures::future::join_all;
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::preheat::{
    ImageListError, MAX_IMAGES, NodeTarget, Order, Platforms, Preheat, Trigger, image_list, read_list,
};

/// Longest sleep before the clock is looked at again: it may have been set meanwhile, or the machine suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Longest cron expression, bytes: every minute of an hour written out has 170.
const MAX_CRON: usize = 256;
/// Entries of a list of which a report says that they are no images.
const MAX_EXPLAINED: usize = 3;

/// A list of images and when it is warmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// When, in UTC.
    pub cron: CronExpression,
    /// Which images.
    pub list: ListLocation,
    /// For which platforms.
    #[serde(default)]
    pub platforms: Platforms,
    /// Which nodes are warmed too.
    #[serde(default)]
    pub nodes: NodeTarget,
}

/// A cron expression: minute, hour, day of the month, month, day of the week; with a field more, seconds come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CronExpression {
    text: String,
    cron: Cron,
}

/// A text that is no cron expression, or one that names no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no time to warm a list: {problem}; write for instance \"0 3 * * *\" for three in the morning (UTC)"
)]
pub struct ParseCronError {
    text: String,
    problem: String,
}

impl CronExpression {
    /// The first moment after this one.
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_next_occurrence(&after.to_zoned(TimeZone::UTC), false);
        found.ok().map(|moment| moment.timestamp())
    }
}

impl FromStr for CronExpression {
    type Err = ParseCronError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |problem: String| ParseCronError { text: text.chars().take(80).collect(), problem };
        if text.len() > MAX_CRON {
            return Err(error(format!("it has more than {MAX_CRON} bytes")));
        }
        // The library passes over what is empty, and looks at every minute of three thousand years for one in a list of nothing.
        if text.split_whitespace().flat_map(|field| field.split(',')).any(str::is_empty) {
            return Err(error("something is missing before or after a comma".to_owned()));
        }
        let cron = text.parse::<Cron>().map_err(|problem| error(problem.to_string()))?;
        let CronPattern { seconds, minutes, hours, .. } = &cron.pattern;
        if [seconds, minutes, hours].iter().any(|field| field.values().is_empty()) {
            return Err(error("it names no time of the day".to_owned()));
        }
        let expression = Self { text: text.to_owned(), cron };
        match expression.next(Timestamp::now()) {
            Some(_) => Ok(expression),
            None => Err(error("it never comes".to_owned())),
        }
    }
}

impl fmt::Display for CronExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Where a list of images is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListLocation {
    /// A file.
    File(PathBuf),
    /// At an `http` or `https` URL.
    Url(Url),
}

/// A text that is no place of a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseListError {
    /// Neither a URL nor an absolute path.
    #[error("write an absolute path, or a URL that begins with https:// or http://")]
    Place,
    /// With credentials, which would show in reports.
    #[error("the URL has a user name or password; those would be shown with the jobs")]
    Credentials,
}

impl FromStr for ListLocation {
    type Err = ParseListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') {
            return Ok(Self::File(PathBuf::from(text)));
        }
        let url = text.parse::<Url>().map_err(|_| ParseListError::Place)?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(ParseListError::Place);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ParseListError::Credentials);
        }
        Ok(Self::Url(url))
    }
}

impl fmt::Display for ListLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

impl ListLocation {
    /// For reports and logs: without what may be a key in the query.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Url(url) => {
                let mut url = url.clone();
                url.set_query(None);
                url.set_fragment(None);
                url.to_string()
            }
        }
    }
}

macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(CronExpression, ListLocation);

/// Puts the lists into the queue when their time comes, until `halt`.
pub(crate) async fn run(schedules: Vec<Schedule>, preheat: Preheat, halt: CancellationToken) {
    let all = join_all(schedules.iter().map(|schedule| follow(schedule, &preheat)));
    halt.run_until_cancelled(all).await;
}

async fn follow(schedule: &Schedule, preheat: &Preheat) -> Infallible {
    let mut now = Timestamp::now();
    loop {
        let Some(next) = schedule.cron.next(now) else {
            tracing::error!(cron = %schedule.cron, "a schedule has no next time and is not followed any more");
            return std::future::pending().await;
        };
        loop {
            now = Timestamp::now();
            let Ok(left) = Duration::try_from(next.duration_since(now)) else { break };
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
        begin(schedule, preheat).await;
        // What came while the list was read is not made up for.
        now = Timestamp::now().max(next);
    }
}

/// Reads the list and asks for a job, unless the last one of it is not over.
async fn begin(schedule: &Schedule, preheat: &Preheat) {
    let list = schedule.list.shown();
    if preheat.is_under_way(&list) {
        tracing::warn!(list, cron = %schedule.cron, "a list is still being warmed since last time; this time is left out");
        return;
    }
    let (images, problem) = match read_list(&schedule.list).await {
        Ok(text) => images(&text),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    if let Some(problem) = &problem {
        tracing::warn!(list, problem, "a list of images cannot be used wholly");
    }
    let order = Order {
        trigger: Trigger::Schedule,
        images: images.into_iter().map(|image| (image, None)).collect(),
        platforms: schedule.platforms.clone(),
        nodes: schedule.nodes,
        list: Some(list.clone()),
        problem,
    };
    if let Err(full) = preheat.submit(order) {
        tracing::warn!(list, error = %full, "a list is not warmed this time");
    }
}

/// The images of a list, and what else is in it.
fn images(text: &str) -> (Vec<ImageReference>, Option<String>) {
    let (mut images, mut bad) = (Vec::new(), Vec::new());
    for line in image_list(text) {
        match line.parse::<ImageReference>() {
            Ok(image) if !images.contains(&image) => images.push(image),
            Ok(_) => {}
            Err(error) => bad.push(error.to_string()),
        }
    }
    let too_many = images.len() > MAX_IMAGES;
    images.truncate(MAX_IMAGES);
    let problem = match () {
        () if too_many => Some(format!("the list has more than {MAX_IMAGES} images; the rest is left out")),
        () if !bad.is_empty() => {
            let shown = bad.iter().take(MAX_EXPLAINED).map(String::as_str).collect::<Vec<_>>().join("; ");
            Some(format!("{} entries are no images: {shown}", bad.len()))
        }
        () if images.is_empty() => Some(ImageListError::Empty.to_string()),
        () => None,
    };
    (images, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_utc_and_have_to_come() {
        let next = |cron: &str, after: &str| {
            cron.parse::<CronExpression>().unwrap().next(after.parse().unwrap()).unwrap().to_string()
        };
        assert_eq!(next("0 3 * * *", "2026-11-21T02:59:59Z"), "2026-11-21T03:00:00Z");
        assert_eq!(next("0 3 * * *", "2026-11-21T03:00:00Z"), "2026-11-22T03:00:00Z");
        assert_eq!(next("*/15 9-17 * * MON-FRI", "2026-11-20T17:50:00Z"), "2026-11-23T09:00:00Z");
        assert_eq!(next("*/5 * * * * *", "2026-11-21T03:00:01Z"), "2026-11-21T03:00:05Z");
        assert_eq!(next("@daily", "2026-11-21T03:00:01Z"), "2026-11-22T00:00:00Z");
        for bad in ["", "soon", "* * *", "61 * * * *", "0 0 30 2 *", &"0,".repeat(200)] {
            assert!(bad.parse::<CronExpression>().is_err(), "{bad}");
        }
        // Found by the fuzzer: it was looked for, for minutes.
        for empty in ["08 , * * * *", ", * * * *", "0 , * * *", "0 0 , * *", "0 0 * , *", "0 0 * * ,", "0,,5 * * * *"] {
            let error = empty.parse::<CronExpression>().unwrap_err().to_string();
            assert!(error.contains("comma"), "{error}");
        }
        // Few days are looked at of those that never come.
        for never in ["0 0 31 2,4,6,9,11 *", "0 0 31W 2 *", "* * * 30 2 * 2030-4999"] {
            assert!(never.parse::<CronExpression>().is_err(), "{never}");
        }
    }

    #[test]
    fn lists_are_files_or_urls_without_credentials() {
        for good in ["/etc/eagle/images.txt", "https://a.example/list?key=sesame", "http://[::1]:8080/x"] {
            let list: ListLocation = good.parse().unwrap();
            assert_eq!(list.to_string(), good);
            assert!(!list.shown().contains("sesame"));
        }
        for bad in [
            "images.txt",
            "",
            "ftp://a/b",
            "file:///etc/passwd",
            "https://",
            "https://user:word@a/b",
            "https://user@a/b",
        ] {
            assert!(bad.parse::<ListLocation>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_image_is_said_and_the_rest_is_warmed() {
        let (found, problem) = images("debian:12 # base\n../../etc/passwd\ndebian:12\n\na.example/b/c:1\nA B\n");
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["docker.io/library/debian:12", "a.example/b/c:1"]
        );
        assert!(problem.unwrap().starts_with("2 entries are no images"));
        assert_eq!(images("debian").1, None);
        assert!(images("# nothing").1.unwrap().contains("no image"));
        let many: String = (0..2000).map(|number| format!("image:{number}\n")).collect();
        let (found, problem) = images(&many);
        assert_eq!((found.len(), problem.is_some()), (MAX_IMAGES, true));
    }
}
