//! Types of our own that stand for the API's, where an informer is to keep less of each object.

/// Makes a type with ObjectMeta in the field `$meta` a resource of the same kind as the client's type `$whole`.
#[macro_export]
macro_rules! resource_as {
    ($slim:ty, $meta:ident, $whole:ty) => {
        impl kube::Resource for $slim {
            type DynamicType = ();
            type Scope = <$whole as kube::Resource>::Scope;

            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::kind(&())
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::group(&())
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::version(&())
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::plural(&())
            }
            fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.$meta
            }
            fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.$meta
            }
        }
    };
}
