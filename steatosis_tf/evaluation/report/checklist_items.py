"""Items of three reporting guidelines, in our own words, and where a report answers each.

Numbers are those of the published checklists:

- CLAIM 2024, 44 items: Tejani et al., Radiology: AI 2024, doi 10.1148/ryai.240300.
- TRIPOD+AI, 27 items in 52 rows: Collins et al., BMJ 2024, doi 10.1136/bmj-2023-078378.
- STARD-AI, 40 items in 48 rows: Sounderajah et al., Nature Medicine 2025,
  doi 10.1038/s41591-025-03953-8, table 2.

Checked in November 2026, row by row, against two independent renderings of each (the checklists of
github.com/Aperivue/medsci-skills, and checklists filled in by other authors), not against the
journals' own pages.

One line an item: number | subject | evidence. Evidence is `auto:NAME` (answered by the run, see
`checklists.py`), `study:NAME` (answered by the author in study.json), several of these joined by
`+` where the item asks for all of them, or `author` (belongs in the manuscript).
"""

CLAIM_2024 = """
1 | Title or abstract names the AI technique | author
2 | Structured abstract | author
3 | Background, intended use and role of the AI | study:intended_use
4 | Aims and hypotheses | author
5 | Prospective or retrospective | author
6 | Goal of the study | author
7 | Data sources | study:data_sources
8 | Inclusion and exclusion criteria | study:eligibility
9 | Preprocessing of data | auto:preprocessing
10 | Selection of data subsets | auto:preprocessing
11 | De-identification | study:deidentification
12 | Missing data | study:missing_data
13 | Image acquisition | study:devices
14 | Definition of the reference standard | study:reference_standard
15 | Reason for this reference standard | study:reference_standard
16 | Source of the reference annotations | study:readers
17 | Annotation of the test set | study:readers
18 | Variability within and between readers | study:readers
19 | Assignment of data to partitions | auto:split
20 | Level at which partitions are disjoint | auto:disjoint
21 | Intended sample size | study:sample_size
22 | Description of the model | auto:config
23 | Software and versions | auto:environment
24 | Initialisation of parameters | auto:config
25 | Training: augmentation, hyperparameters, length | auto:config
26 | Choice of the final model | auto:config
27 | Ensembling | auto:config
28 | Metrics | auto:metrics
29 | Uncertainty and significance | auto:intervals
30 | Robustness or sensitivity analysis | auto:robustness
31 | Explainability and its validation | author
32 | Evaluation on internal data | auto:metrics
33 | Testing on external data | auto:external
34 | Registration of a trial | study:protocol
35 | Numbers included and excluded | auto:flow
36 | Demographic and clinical characteristics per partition | auto:characteristics
37 | Performance with uncertainty | auto:intervals
38 | Diagnostic accuracy and its precision | auto:operating
39 | Failure analysis | auto:gallery
40 | Limitations | study:limitations
41 | Implications for practice | author
42 | Protocol or further technical details | study:protocol
43 | Availability of software, model, data | study:availability
44 | Funding and the funders' role | study:funding
"""

TRIPOD_AI = """
1 | Title: development or evaluation, population, outcome | author
2 | Abstract | author
3a | Context and reason, existing models | author
3b | Target population and use in the care pathway | study:population
3c | Known health inequalities | author
4 | Objectives | author
5a | Sources of data and their fitness | study:data_sources
5b | Dates of collection | study:dates
6a | Setting, number and place of centres | study:data_sources
6b | Eligibility | study:eligibility
6c | Treatments received | author
7 | Data preparation and quality checks | auto:preprocessing
8a | Outcome and how it was assessed | study:reference_standard
8b | Assessors of the outcome | study:readers
8c | Blinding of outcome assessment | study:readers
9a | Choice of predictors | auto:preprocessing
9b | Definition and measurement of predictors | study:devices
9c | Assessors of predictors | study:devices
10 | Sample size | study:sample_size
11 | Missing data | study:missing_data
12a | How data were used for development and evaluation | auto:split
12b | Handling of predictors | auto:preprocessing
12c | Model type, building steps, tuning, internal validation | auto:config
12d | Differences between clusters | auto:subgroups
12e | Measures of performance | auto:metrics
12f | Updating after evaluation | study:monitoring
12g | How predictions were calculated | auto:config
13 | Class imbalance | auto:config
14 | Fairness | auto:subgroups
15 | Output of the model and thresholds | auto:operating
16 | Differences between development and evaluation data | auto:characteristics
17 | Ethics approval and consent | study:consent
18a | Funding | study:funding
18b | Conflicts of interest | study:funding
18c | Protocol | study:protocol
18d | Registration | study:protocol
18e | Availability of data | study:availability
18f | Availability of code | study:availability
19 | Involvement of patients and public | study:involvement
20a | Flow of participants | auto:flow
20b | Characteristics of participants | auto:characteristics
20c | Comparison with development data | auto:characteristics
21 | Participants and events in each analysis | auto:metrics
22 | Full model, so that others can predict | auto:model
23a | Performance with confidence intervals, subgroups | auto:intervals
23b | Heterogeneity between clusters | auto:subgroups
24 | Results of updating | study:monitoring
25 | Interpretation | author
26 | Limitations | study:limitations
27a | Poor or missing input in use | auto:rejection
27b | Interaction with and expertise of users | study:users
27c | Next steps | author
"""

STARD_AI = """
1 | Title or abstract: diagnostic accuracy of an AI, a measure of accuracy | author
2 | Structured abstract | author
3 | Background, intended use of the index test, place in the workflow | study:intended_use
4 | Objectives and hypotheses | author
5 | Data collected before or after the tests | author
6 | Ethics approval, or why none was needed | study:consent
7 | Eligibility of participants and of data | study:eligibility
8 | How participants were identified | study:eligibility
9 | Where and when | study:dates
10 | Consecutive, random or convenience series | study:eligibility
11 | Source of the data, and why they were collected | study:data_sources
12 | Who annotated the data, with what experience, and how | study:readers
13 | Devices and software, with versions | study:devices + auto:environment
14 | Acquisition and preprocessing | study:devices + auto:preprocessing
15a | Index test, to be repeated by others | auto:config
15b | Development of the index test: parts and their sizes | auto:config + auto:split
15c | Cut-offs of the index test, fixed before or found after | auto:operating
15d | Who uses it, with what expertise | study:users
16a | Reference standard | study:reference_standard
16b | Reason for the reference standard | study:reference_standard
16c | Cut-offs of the reference standard | study:reference_standard
17a | What readers of the index test knew | study:readers
17b | What assessors of the reference knew | study:readers
18 | Estimating and comparing accuracy | auto:intervals
19 | Indeterminate results, abstention | auto:rejection
20 | Missing data | study:missing_data
21 | Variability in accuracy | auto:subgroups
22 | Sample size | study:sample_size
23 | Analysis of errors, bias and fairness | auto:gallery + auto:subgroups
24 | Flow of participants, as a diagram | auto:flow
25 | Characteristics of each part of the data | auto:characteristics
26a | Severity in those with the condition | auto:metrics
26b | Other diagnoses in those without | author
27 | Interval and treatment between index test and reference | study:reference_standard
28 | Whether the data represent the intended population | study:population
29 | How external data differ | auto:external
30 | Cross tabulation of index test and reference | auto:metrics
31 | Accuracy with its precision | auto:intervals
32 | Adverse events | author
33 | Limitations, bias, generalisability | study:limitations
34 | Implications for practice | author
35 | Ethical considerations and fairness | author
36 | Registration | study:protocol
37 | Protocol | study:protocol
38 | Funding and role of funders | study:funding
39 | Commercial interests | study:funding
40a | Availability of data and code | study:availability
40b | Outputs stored and open to audit | auto:outputs
"""

CHECKLISTS = {
    "CLAIM 2024": CLAIM_2024,
    "TRIPOD+AI": TRIPOD_AI,
    "STARD-AI": STARD_AI,
}
