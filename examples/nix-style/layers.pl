# Writes /layers/output: one directory for each package of the root file system, and one for the files of no package.
use strict;
use warnings;

my $out = "/layers/output";

sub slurp { open my $f, '<', $_[0] or return ''; local $/; return scalar <$f> }
sub spew { open my $f, '>', $_[0] or die "$_[0]: $!"; print $f $_[1]; close $f or die "$_[0]: $!" }
sub quote { my $s = shift; $s =~ s/(["\\])/\\$1/g; return "\"$s\"" }

# The layers of the build before: name and key -> digest. A row holds no braces.
my %known;
for (slurp("/layers/history.json") =~ /\{(.*?)\}/sg) {
    my %row = /"(\w+)": "([^"]*)"/g;
    $known{"$row{name} $row{key}"} = $row{digest} if $row{name} && $row{key};
}

# What each package has. A usr-merged system has /bin/x as /usr/bin/x.
my (%files, %stanza, %owned);
for my $text (split /\n\n+/, slurp("/var/lib/dpkg/status")) {
    my ($p) = $text =~ /^Package: (.*)$/m or next;
    next unless $text =~ /^Status: install ok installed$/m;
    my ($arch) = $text =~ /^Architecture: (.*)$/m;
    my ($list) = grep { -e "$_.list" } "/var/lib/dpkg/info/$p", "/var/lib/dpkg/info/$p:$arch";
    next unless $list;
    $stanza{$p} = "$text\n";
    for (split /\n/, slurp("$list.list")) {
        s{^/(bin|sbin|lib\w*)/}{/usr/$1/} if m{^/(bin|sbin|lib\w*)/} && -l "/$1";
        next if $_ eq '/.' || !(-e || -l);
        $files{$p}{$_} = $owned{$_} = 1;
    }
    for (glob "$list.*") { $files{$p}{$_} = $owned{$_} = 1 }
}

# The files of no package, without what only this step sees.
open my $find, '-|', qw(find / -xdev -mindepth 1), '(', qw(-path /layers -o -path /mnt -o -path /proc -o -path /sys -o -path /dev -o
    -path /var/lib/dpkg/status -o -path /var/lib/dpkg/status-old -o -path /etc/resolv.conf -o -path /etc/hosts), ')', qw(-prune -o -print0) or die;
{
    local $/ = "\0";
    while (<$find>) { chomp; $files{rest}{$_} = 1 unless $owned{$_} }
}
close $find or die "find failed";

my @layers;
my ($made, $reused) = (0, 0);
for my $p (sort { ($a eq 'rest') <=> ($b eq 'rest') || $a cmp $b } keys %files) {
    my @paths = sort keys %{ $files{$p} };
    # The key is what the package consists of; its checksums stand for its files.
    my ($sums) = grep { /\.md5sums$/ } @paths;
    spew("/tmp/key", join("\n", @paths) . ($stanza{$p} // '') . ($sums ? slurp($sums) : ''));
    my ($key) = `sha256sum /tmp/key` =~ /^(\w+)/;
    my $head = '"name": ' . quote($p) . ", \"key\": \"$key\"";
    if ($p ne 'rest' && $known{"$p $key"}) {
        push @layers, "{\"input\": \"" . $known{"$p $key"} . "\", $head}";
        $reused++;
        next;
    }
    my $dir = "$out/" . $p;
    mkdir $dir or die "$dir: $!";
    spew("/tmp/list", join("\0", map { "." . $_ } @paths));
    system("tar -C / --no-recursion --null -T /tmp/list -cf - | tar -C '$dir' -xpf -") == 0 or die "tar: $p";
    if ($stanza{$p}) { # so that each package's layer says what is in it
        system("mkdir", "-p", "$dir/var/lib/dpkg/status.d") == 0 or die;
        spew("$dir/var/lib/dpkg/status.d/$p", $stanza{$p});
    }
    push @layers, "{\"dir\": " . quote($p) . ", $head}";
    $made++;
}
spew("$out/image.json", "{\"layers\": [\n" . join(",\n", @layers) . "],\n\"config\": {\"Env\": [\"PATH=/usr/sbin:/usr/bin\"]}}\n");
print "layers made: $made, reused: $reused\n";
