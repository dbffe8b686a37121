package buildkit

import (
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	apicapspb "github.com/moby/buildkit/util/apicaps/pb"
)

// frontendAPICaps are the capabilities of the gateway that this server has. Each is listed: a capability that a later version of
// BuildKit adds is not announced before it works. CapSolveInlineReturn is missing: a Solve does not end its build.
func frontendAPICaps() []*apicapspb.APICap {
	return announce(
		gateway.CapSolveBase, gateway.CapResolveImage, gateway.CapResolveImageResolveMode, gateway.CapReadFile,
		gateway.CapReturnResult, gateway.CapReturnMap, gateway.CapReadDir, gateway.CapStatFile, gateway.CapImportCaches,
		gateway.CapProtoRefArray, gateway.CapReferenceOutput, gateway.CapFrontendInputs, gateway.CapGatewaySolveMetadata,
		gateway.CapGatewayExec, gateway.CapGatewayExecExtraHosts, gateway.CapGatewayExecSecretEnv,
		gateway.CapGatewayExecSignals, gateway.CapGatewayExecFilesystem, gateway.CapFrontendCaps,
		gateway.CapGatewayEvaluateSolve, gateway.CapGatewayEvaluate, gateway.CapGatewayWarnings, gateway.CapAttestations,
		gateway.CapSourceMetaResolver, gateway.CapSourceMetaResolverImageAttestations,
		gateway.CapSourceMetaResolverHTTPChecksumRequest,
	)
}

// llbCaps are the capabilities of definitions, caches, exporters and the daemon that this server has.
func llbCaps() []*apicapspb.APICap {
	return announce(
		pb.CapSourceImage, pb.CapSourceImageResolveMode, pb.CapSourceImageLayerLimit, pb.CapSourceImageChecksum,
		pb.CapSourceLocal, pb.CapSourceLocalUnique, pb.CapSourceLocalSessionID, pb.CapSourceLocalIncludePatterns,
		pb.CapSourceLocalFollowPaths, pb.CapSourceLocalExcludePatterns, pb.CapSourceLocalSharedKeyHint,
		pb.CapSourceLocalDiffer, pb.CapSourceMetadataTransfer, pb.CapSourceGit, pb.CapSourceGitKeepDir,
		pb.CapSourceGitFullURL, pb.CapSourceGitHTTPAuth, pb.CapSourceGitKnownSSHHosts, pb.CapSourceGitMountSSHSock,
		pb.CapSourceGitSubdir, pb.CapSourceGitChecksum, pb.CapSourceGitSkipSubmodules, pb.CapSourceGitSignatureVerify,
		pb.CapSourceGitMTime, pb.CapSourceGitFetchByCommit, pb.CapSourceGitBundle, pb.CapSourceGitCheckoutBundle,
		pb.CapSourceHTTP, pb.CapSourceHTTPAuth, pb.CapSourceHTTPChecksum, pb.CapSourceHTTPPerm, pb.CapSourceHTTPUIDGID,
		pb.CapSourceHTTPHeader, pb.CapSourceHTTPSignatureVerify, pb.CapSourceImageBlob, pb.CapSourceOCILayout,
		pb.CapBuildOpLLBFileName, pb.CapExecMetaBase, pb.CapExecMetaCgroupParent, pb.CapExecMetaNetwork,
		pb.CapExecMetaNetworkProxy, pb.CapExecMetaProxy, pb.CapExecMetaSecurity, pb.CapExecMetaSecurityDeviceWhitelistV1,
		pb.CapExecMetaSetsDefaultPath, pb.CapExecMetaUlimit, pb.CapExecMetaCDI, pb.CapExecMetaLinuxResources,
		pb.CapExecMountBind, pb.CapExecMountBindReadWriteNoOutput, pb.CapExecMountCache, pb.CapExecMountCacheSharing,
		pb.CapExecMountSelector, pb.CapExecMountTmpfs, pb.CapExecMountTmpfsSize, pb.CapExecMountSecret, pb.CapExecMountSSH,
		pb.CapExecMountContentCache, pb.CapExecCgroupsMounted, pb.CapExecSecretEnv, pb.CapExecValidExitCode,
		pb.CapFileBase, pb.CapFileRmWildcard, pb.CapFileCopyIncludeExcludePatterns, pb.CapFileCopyRequiredPaths,
		pb.CapFileRmNoFollowSymlink, pb.CapFileCopyAlwaysReplaceExistingDestPaths, pb.CapFileSymlinkCreate,
		pb.CapConstraints, pb.CapPlatform, pb.CapMetaIgnoreCache, pb.CapMetaDescription, pb.CapMetaExportCache,
		pb.CapRemoteCacheGHA, pb.CapRemoteCacheS3, pb.CapRemoteCacheAzBlob, pb.CapMergeOp, pb.CapDiffOp,
		pb.CapPassthroughOp, pb.CapAnnotations, pb.CapAttestations, pb.CapSourceDateEpoch, pb.CapMultipleExporters,
		pb.CapSessionExporter, pb.CapSourcePolicy, pb.CapSourcePolicySession, pb.CapGCFreeSpaceFilter,
		pb.CapHistoryFilters,
	)
}

func announce(ids ...apicaps.CapID) []*apicapspb.APICap {
	var out []*apicapspb.APICap
	for _, id := range ids {
		out = append(out, &apicapspb.APICap{ID: string(id), Enabled: true})
	}
	return out
}
