//! Names as people and programs write them: images, registries, digests; sizes, times and patterns of the configuration.

use std::{fmt::Display, str::FromStr};

use eagle_core::{
    Digest, NodeId,
    units::{Rate, Size},
};
use eagle_registry::{ImageReference, Reference, RegistryName, RepositoryName, Tag, config::duration};
use eagle_seeder::{
    StorageLocation,
    preheat::{CronExpression, ImagePattern, ListLocation, NodeTarget, PlatformName},
};

/// Every reader of a name gets the same text.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let text = text.strip_suffix('\n').unwrap_or(text);
    plain::<RegistryName>(text);
    plain::<RepositoryName>(text);
    plain::<Tag>(text);
    plain::<Reference>(text);
    plain::<ImageReference>(text);
    plain::<Digest>(text);
    plain::<NodeId>(text);
    same::<Size>(text);
    same::<Rate>(text);
    same::<PlatformName>(text);
    same::<NodeTarget>(text);
    same::<ListLocation>(text);
    let _ = text.parse::<StorageLocation>();
    if let Some(time) = duration::parse(text) {
        // Shown to the millisecond.
        assert!(duration::parse(&duration::format(time)).is_some_and(|again| time.abs_diff(again).as_millis() <= 1));
    }
    if let Ok(pattern) = text.parse::<ImagePattern>()
        && let (Ok(registry), Ok(repository), Ok(tag)) = ("ghcr.io".parse(), "a/b".parse(), "1".parse())
    {
        let _ = pattern.matches(&registry, &repository, &tag);
    }
    // A moment is looked for in the calendar of some thousand years; one per input is enough.
    let _ = text.parse::<CronExpression>();
    assert!(eagle_seeder::preheat::image_list(text).iter().all(|line| !line.is_empty() && !line.contains(['\n', '#'])));
}

/// What is shown is read as the same value.
fn same<T: FromStr<Err: std::fmt::Debug> + Display + PartialEq + std::fmt::Debug>(text: &str) -> Option<String> {
    let value = text.parse::<T>().ok()?;
    let shown = value.to_string();
    assert_eq!(shown.parse::<T>().ok(), Some(value), "{text:?} is shown as {shown:?}");
    Some(shown)
}

/// And may stand in paths, URLs and headers as it is.
fn plain<T: FromStr<Err: std::fmt::Debug> + Display + PartialEq + std::fmt::Debug>(text: &str) {
    let Some(shown) = same::<T>(text) else { return };
    assert!(shown.len() <= 1024 && !shown.is_empty(), "{shown:?}");
    assert!(shown.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:/@[]".contains(&byte)), "{shown:?}");
    assert!(shown.split('/').all(|part| !matches!(part, "" | "." | "..")), "{shown:?}");
}
