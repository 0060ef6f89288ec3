//! Bodies in protobuf: what decodes must encode, and decode again to what encodes alike.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Ok(object) = api::protobuf::decode_body(body, Some(("v1", "Pod"))) else {
        return;
    };
    let Ok(encoded) = api::protobuf::encode(&object) else {
        return;
    };
    let again = api::protobuf::decode_body(&encoded, None).expect("what was encoded decodes");
    assert_eq!(
        api::protobuf::encode(&again).expect("it encoded before"),
        encoded
    );
});
