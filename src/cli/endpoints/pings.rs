//! Asking an endpoint, or its token server, whether it takes what we would send.

use anyhow::bail;
use hawser_client::{Client, pb};

use crate::cli::connect::explain;
use crate::cli::{contract, table};

pub async fn ping(
    client: &Client,
    project_id: String,
    endpoint_id: String,
    json: bool,
) -> anyhow::Result<()> {
    let request = pb::PingEndpointRequest { project_id, endpoint_id };
    let reply = client.endpoints().ping_endpoint(request).await.map_err(|status| explain(&status))?;
    let reply = reply.into_inner();
    if json {
        contract::print(&reply, json)?;
    } else {
        let mut table = table::plain(&["method", "answer", "took"]);
        for one in &reply.tries {
            let answer = table::answer(one.status_code, one.error_class());
            table.add_row([one.method.clone(), answer, table::took(one.duration)]);
        }
        println!("{table}");
    }
    if !reply.accepted {
        bail!("the endpoint did not accept the ping");
    }
    Ok(())
}

pub async fn test_oauth2(
    client: &Client,
    project_id: String,
    endpoint_id: String,
    json: bool,
) -> anyhow::Result<()> {
    let subject = Some(pb::test_o_auth2_request::Subject::EndpointId(endpoint_id));
    let request = pb::TestOAuth2Request { project_id, subject };
    let reply = client.endpoints().test_o_auth2(request).await.map_err(|status| explain(&status))?;
    let reply = reply.into_inner();
    contract::print(&reply, json)?;
    if !reply.granted {
        bail!("no token was granted: {}", table::cell(&reply.error_detail));
    }
    Ok(())
}
