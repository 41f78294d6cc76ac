//! The methods that the server knows, and which of them stream, as the contracts' descriptors say.

use std::collections::HashMap;

use prost::Message;
use prost_types::FileDescriptorSet;

use super::pb;

/// What kind of call a method is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One request, one reply: bounded in time and number.
    Unary,
    /// Open for as long as both sides want.
    Stream,
    /// The same, and the client sends too: the handler ends it when the connection is to go, once it has answered
    /// what it read.
    Exchange,
}

/// All methods by path, such as `/hawser.v1.EventService/PublishEvent`.
pub fn all() -> Result<HashMap<String, Shape>, prost::DecodeError> {
    let mut methods = HashMap::new();
    for encoded in [
        pb::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        for file in FileDescriptorSet::decode(encoded)?.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let shape = match (method.client_streaming(), method.server_streaming()) {
                        (false, false) => Shape::Unary,
                        (false, true) => Shape::Stream,
                        (true, _) => Shape::Exchange,
                    };
                    methods.insert(path, shape);
                }
            }
        }
    }
    Ok(methods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_says_what_streams() {
        let methods = all().expect("descriptors decode");
        let shape = |path: &str| methods.get(path).copied();
        assert_eq!(shape("/hawser.v1.EventService/PublishEvent"), Some(Shape::Unary));
        assert_eq!(shape("/hawser.v1.WatchService/Watch"), Some(Shape::Stream));
        assert_eq!(shape("/hawser.v1.EventService/StreamPublishEvents"), Some(Shape::Exchange));
        assert_eq!(shape("/grpc.health.v1.Health/Check"), Some(Shape::Unary));
        assert_eq!(shape("/grpc.health.v1.Health/Watch"), Some(Shape::Stream));
        assert_eq!(shape("/nobody/Nothing"), None);
    }
}
