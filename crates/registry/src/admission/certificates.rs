//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who may decide about
//! certificate requests of which signer.

use apiserver::types::Status;
use apiserver::{Admission, Attributes, AuthzAttributes, Decision, Operation};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{forbidden, is, is_sub};
use crate::util::{quote, text};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";

/// Whether the user may do `verb` to requests for this signer.
fn may(attributes: &Attributes<'_>, verb: &str, signer: &str) -> bool {
    let asks = |name: String| {
        let question = AuthzAttributes {
            user: attributes.ctx.user.clone(),
            verb: verb.to_owned(),
            resource_request: true,
            api_group: GROUP.to_owned(),
            api_version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..AuthzAttributes::default()
        };
        attributes.ctx.authorize(&question).0 == Decision::Allow
    };
    let domain = signer.split('/').next().unwrap_or(signer);
    asks(signer.to_owned()) || asks(format!("{domain}/*"))
}

/// Approving needs its own permission for the signer.
pub(super) struct CertificateApproval;

#[async_trait]
impl Admission for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>, _: Option<&Value>) -> Result<(), Status> {
        let Some(old) = attributes.old else { return Ok(()) };
        let signer = text(old, "/spec/signerName");
        if is_sub(attributes, GROUP, REQUESTS, "approval") && !attributes.ctx.settled(|| may(attributes, "approve", signer)).await {
            let why = format!("user not permitted to approve requests with signerName {}", quote(signer));
            return Err(forbidden(attributes, Some(old), why));
        }
        Ok(())
    }
}

/// Signing needs its own permission for the signer.
pub(super) struct CertificateSigning;

#[async_trait]
impl Admission for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>, new: Option<&Value>) -> Result<(), Status> {
        let Some(old) = attributes.old else { return Ok(()) };
        let signer = text(old, "/spec/signerName");
        let signs = is_sub(attributes, GROUP, REQUESTS, "status")
            && new.is_some_and(|n| n.pointer("/status/certificate") != old.pointer("/status/certificate"));
        if signs && !attributes.ctx.settled(|| may(attributes, "sign", signer)).await {
            let why = format!("user not permitted to sign requests with signerName {}", quote(signer));
            return Err(forbidden(attributes, Some(old), why));
        }
        Ok(())
    }
}

/// Nobody gets a client certificate of the group `system:masters` by request.
pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Admission for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn validate(&self, attributes: &Attributes<'_>, request: Option<&Value>) -> Result<(), Status> {
        const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
        let Some(request) = request.filter(|r| is(attributes, GROUP, REQUESTS) && text(r, "/spec/signerName") == SIGNER) else {
            return Ok(());
        };
        let pem = STANDARD.decode(text(request, "/spec/request")).unwrap_or_default();
        let csr = pki::Csr::from_pem(&String::from_utf8_lossy(&pem))
            .map_err(|e| forbidden(attributes, Some(request), format!("failed to parse CSR: {e}")))?;
        if csr.orgs.iter().any(|o| o == "system:masters") {
            let why = format!("use of {SIGNER} signer with system:masters group is not allowed");
            return Err(forbidden(attributes, Some(request), why));
        }
        Ok(())
    }
}
