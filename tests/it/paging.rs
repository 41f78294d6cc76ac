//! Lists come in pages that miss and repeat nothing, and their tokens are bound to the list.

use std::collections::HashSet;

use hawser_client::{Key, field_violations, pb};

use crate::support::{Database, World, on_both};

on_both!(pages_cover_the_list_once, tokens_are_bound_to_project_and_filter);

async fn make(world: &World, count: usize) {
    for number in 0..count {
        let endpoint = pb::Endpoint {
            url: format!("https://example.com/{number}"),
            owner_id: if number % 2 == 0 { "even" } else { "odd" }.to_owned(),
            ..Default::default()
        };
        world.create(endpoint, &["*"]).await;
    }
}

async fn pages_cover_the_list_once(database: Database) {
    let world = World::new(database).await;
    make(&world, 23).await;
    let mut request = pb::ListEndpointsRequest { page_size: 5, ..Default::default() };
    let (mut seen, mut pages) = (HashSet::new(), 0);
    loop {
        let reply =
            world.client.endpoints().list_endpoints(request.clone()).await.expect("listed").into_inner();
        assert!(reply.endpoints.len() <= 5);
        pages += 1;
        for endpoint in reply.endpoints {
            assert!(seen.insert(endpoint.id), "an endpoint came twice");
        }
        if reply.next_page_token.is_empty() {
            break;
        }
        request.page_token = reply.next_page_token;
    }
    assert_eq!((seen.len(), pages), (23, 5));
    let odd = pb::ListEndpointsRequest { owner_id: "odd".to_owned(), ..Default::default() };
    assert_eq!(
        world.client.endpoints().list_endpoints(odd).await.expect("listed").into_inner().endpoints.len(),
        11
    );
}

async fn tokens_are_bound_to_project_and_filter(database: Database) {
    let world = World::new(database).await;
    make(&world, 4).await;
    let request =
        pb::ListEndpointsRequest { page_size: 1, project_id: world.project.clone(), ..Default::default() };
    let first = world.client.endpoints().list_endpoints(request.clone()).await.expect("listed").into_inner();
    let token = first.next_page_token;
    let refused = |client: hawser_client::Client, request: pb::ListEndpointsRequest| async move {
        let status = client.endpoints().list_endpoints(request).await.expect_err("a foreign token");
        assert_eq!(field_violations(&status)[0].field, "page_token", "{status}");
    };
    let with_token = pb::ListEndpointsRequest { page_token: token.clone(), ..request.clone() };
    world.client.endpoints().list_endpoints(with_token.clone()).await.expect("its own token");
    let filtered = pb::ListEndpointsRequest { owner_id: "odd".to_owned(), ..with_token.clone() };
    refused(world.client.clone(), filtered).await;
    let damaged = pb::ListEndpointsRequest { page_token: format!("A{token}"), ..request.clone() };
    refused(world.client.clone(), damaged).await;
    let (project, key) = crate::support::world::project(&world.operator, pb::PausedPolicy::Discard).await;
    let other = world.client.with_key(&Key::new(key)).expect("a key");
    refused(other, pb::ListEndpointsRequest { project_id: project, ..with_token }).await;
    let negative = pb::ListEndpointsRequest { page_size: -1, ..request };
    let status = world.client.endpoints().list_endpoints(negative).await.expect_err("negative");
    assert_eq!(field_violations(&status)[0].field, "page_size");
}
