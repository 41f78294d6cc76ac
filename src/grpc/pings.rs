//! PingEndpoint and TestOAuth2 of EndpointService.

use tonic::Status;

use super::check::Check;
use super::{Api, convert, credentials, pb};
use crate::domain::id::EndpointId;
use crate::domain::principal::Principal;
use crate::service::{Ping, TokenSubject};

impl Api {
    pub(super) async fn ping(
        &self,
        caller: &Principal,
        request: pb::PingEndpointRequest,
    ) -> Result<pb::PingEndpointResponse, Status> {
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<EndpointId> = check.id("endpoint_id", &request.endpoint_id);
        let id = check.finish(id)?;
        let ping = self.services.ping_endpoint(caller, project, id).await?;
        Ok(pb::PingEndpointResponse { accepted: ping.is_accepted(), tries: tries(&ping) })
    }

    pub(super) async fn token_test(
        &self,
        caller: &Principal,
        request: pb::TestOAuth2Request,
    ) -> Result<pb::TestOAuth2Response, Status> {
        use pb::test_o_auth2_request::Subject;
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let subject = match request.subject {
            Some(Subject::EndpointId(id)) => check.id("endpoint_id", &id).map(TokenSubject::Endpoint),
            Some(Subject::Oauth2(oauth2)) => credentials::oauth2(&mut check, "oauth2", oauth2)
                .map(|given| TokenSubject::Given(Box::new(given))),
            None => {
                check.refuse("subject", "is required");
                None
            }
        };
        let subject = check.finish(subject)?;
        let test = self.services.test_oauth2(caller, project, subject).await?;
        let (class, detail) = match test.error {
            Some((class, detail)) => (Some(class), detail),
            None => (None, String::new()),
        };
        Ok(pb::TestOAuth2Response {
            granted: test.life.is_some(),
            status_code: test.status.map(i32::from),
            error_class: convert::error_class(class).into(),
            error_detail: detail,
            token_life: test.life.map(|(life, _)| convert::duration(life)),
            token_life_said: test.life.is_some_and(|(_, said)| said),
            duration: Some(convert::duration(test.took)),
        })
    }
}

pub fn tries(ping: &Ping) -> Vec<pb::PingTry> {
    let tries = ping.tries.iter().map(|one| pb::PingTry {
        method: one.method.clone(),
        status_code: one.status.map(i32::from),
        error_class: convert::error_class(one.error).into(),
        duration: Some(convert::duration(one.took)),
    });
    tries.collect()
}

/// What a request says of the ping before a change.
pub const fn ping_first(skip: bool) -> crate::service::PingFirst {
    if skip { crate::service::PingFirst::No } else { crate::service::PingFirst::Yes }
}
