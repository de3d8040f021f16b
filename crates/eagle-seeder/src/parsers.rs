//! What registries, nodes and people send, and what is kept in files, as functions of its bytes alone: for the fuzz targets
//! (`eagle-fuzz`), which have no connection to receive it on.

use eagle_registry::{ImageReference, RegistryName};
use http::Uri;

use crate::{
    images::table::Table,
    notifications::event::{self, Heard},
    preheat::{self, Job},
    route::Route,
};

/// The pushes that the body of a notification tells of, and the reasons why nothing comes of its other events.
///
/// # Errors
/// Where it is none.
pub fn notification(
    body: &[u8],
    registry: Option<&RegistryName>,
) -> Result<(Vec<ImageReference>, Vec<String>), String> {
    let mut found = (Vec::new(), Vec::new());
    for heard in event::read(body, registry).map_err(|error| error.to_string())? {
        match heard {
            Heard::Push(push) => found.0.push(push.image().0),
            Heard::Other(reason) => found.1.push(reason),
        }
    }
    Ok(found)
}

/// The images of a request to preheat.
///
/// # Errors
/// Where it is none.
pub fn preheat_request(body: &[u8]) -> Result<Vec<ImageReference>, String> {
    let request: preheat::PreheatRequest = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let images = request.parse().map_err(|problem| problem.to_string())?;
    Ok(images.into_iter().map(|(image, _)| image).collect())
}

/// A report of a job, written anew.
pub fn job(body: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&serde_json::from_slice::<Job>(body).ok()?).ok()
}

/// The file of images, written anew.
pub fn images(bytes: &[u8]) -> Option<Vec<u8>> {
    Table::from_json(bytes).ok()?.to_json().ok()
}

/// What a request asks for, in words.
///
/// # Errors
/// Where it asks for nothing that there is.
pub fn route(uri: &Uri) -> Result<String, String> {
    Route::parse(uri).map(|route| format!("{route:?}")).map_err(|error| error.to_string())
}
