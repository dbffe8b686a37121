package main

// subset are the functions that CI runs, by group: sixty that span what the whole suite asks of a daemon.
var subset = map[string][]string{
	"client": {
		"TestFileOpCopyIncludeExclude", "TestFileOpSymlink", "TestUser", "TestSecretMounts", "TestSSHMount", "TestMergeOp",
		"TestDiffAsParentMultipleLayerDelete", "TestMetadataOnlyLocal", "TestBuildHTTPSource", "TestOCILayoutSource", "TestOCILayoutBlobSource",
		"TestGitBundleRoundTrip", "TestOCIExporter", "TestMultipleExporters", "TestExportLocalModeDeleteRemovesStaleDestinationFiles",
		"TestSessionExporter", "TestExportAnnotations", "TestSBOMScan", "TestBasicRegistryCacheImportExport", "TestBasicInlineCacheImportExport",
		"TestZstdLocalCacheImportExport", "TestSourcePolicy", "TestSourcePolicySession", "TestSourcePolicySignedCommit",
		"TestListenBuildHistoryExcludesSoftDeletedRecords", "TestHostNetworking", "TestProxyNetworkNoRootless", "TestSecurityModeSysfs",
		"TestCDIEntitlement", "TestClientGatewaySolve", "TestClientGatewayContainerMounts", "TestClientGatewayContainerPID1Tty",
		"TestClientGatewayExecError",
	},
	"frontend": {"TestRefReadFile", "TestRefStatFile"},
	"buildctl": {"TestBuildLocalExporter", "TestDiskUsage"},
	"dockerfile-builtin": {
		"TestBuiltinArgs", "TestUndeclaredArg", "TestErrorsSourceMap", "TestCopyChown", "TestCopyThroughSymlinkMultiStage",
		"TestExcludedFilesOnCopy", "TestDockerfileADDFromURL", "TestAddGitSHA1", "TestGitQueryString", "TestRunComplexHeredoc",
		"TestOnBuildHeredoc", "TestNamedMultiplatformInputContext", "TestNamedOCILayoutContext", "TestCacheMountModeNoCache",
		"TestSecretAsEnviron", "TestRunNoNetwork", "TestExportMultiPlatform", "TestProvenanceAttestation", "TestHistoryError",
		"TestReproSourceDateEpoch", "TestSourceDateEpochContextHTTPArchive",
	},
	"dockerfile-gateway": {"TestFrontendInputs"},
}
