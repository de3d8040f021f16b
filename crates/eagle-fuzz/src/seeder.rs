//! What registries, people and nodes tell a seeder.

use eagle_seeder::{
    parsers,
    preheat::{NodeNews, NodeOrders},
};

/// Notifications, requests to preheat, news of nodes and what seeders answer to those.
pub(crate) fn notifications(bytes: &[u8]) {
    for registry in [None, "registry.example:5000".parse().ok()] {
        match parsers::notification(bytes, registry.as_ref()) {
            Ok((images, reasons)) => {
                assert!(images.len() + reasons.len() <= 1000);
                // Reasons go to a log and to the registry's own.
                assert!(
                    reasons.iter().all(|reason| reason.len() <= 1000 && !reason.contains(char::is_control)),
                    "{reasons:?}"
                );
                if let Some(registry) = &registry {
                    assert!(images.iter().all(|image| image.registry == *registry));
                }
                for image in images {
                    assert_eq!(image.to_string().parse().as_ref(), Ok(&image));
                }
            }
            Err(problem) => assert!(problem.len() <= 1000, "{problem}"),
        }
    }
    if let Ok(images) = parsers::preheat_request(bytes) {
        assert!((1..=1000).contains(&images.len()));
    }
    if let Ok(news) = serde_json::from_slice::<NodeNews>(bytes) {
        let written = serde_json::to_vec(&news).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<NodeNews>(&written).ok(), Some(news));
    }
    let _ = serde_json::from_slice::<NodeOrders>(bytes);
}
